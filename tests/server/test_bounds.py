"""What a request may cost however it is made, and how much of it an answer repeats."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError

from millpond.server.schemas import DetokenizeRequest, EmbeddingRequest
from serving import Call, embed, error_of, fake_app, request

MANY = 100_000


@pytest.fixture
def app() -> Iterator[FastAPI]:
    with fake_app() as app:
        yield app


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (EmbeddingRequest, {"input": [1] + [-1] * MANY}),
        (EmbeddingRequest, {"input": [1] + [""] * MANY}),
        (EmbeddingRequest, {"input": ["a"] + [1.5] * 2000}),
        (EmbeddingRequest, {"input": [[1], *([[-1] * 100] * 2000)]}),
        (EmbeddingRequest, {"input": [[1], *([[]] * 2000)]}),
        (EmbeddingRequest, {"input": "a", **{f"field {n}": n for n in range(MANY)}}),
        (DetokenizeRequest, {"tokens": [-1] * MANY}),
    ],
)
def test_of_many_mistakes_only_the_first_is_looked_for(
    kind: type[BaseModel], body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    assert refused.value.error_count() == 1


LONG = "name" * 10_000


@pytest.mark.parametrize(
    "body",
    [
        {"input": "a", LONG: 1},
        {"input": "a", "model": LONG},
        {"input": "a", "prompt_name": LONG},
        {"input": [1], "prompt_name": LONG},
    ],
)
def test_a_long_name_is_not_repeated(app: FastAPI, body: dict[str, Any]) -> None:
    answer = embed(app, body)
    assert answer.status_code in (400, 404)
    assert LONG[:80] in error_of(answer)["message"]
    assert len(answer.content) < 500


def test_a_long_path_is_not_repeated(app: FastAPI) -> None:
    for path in (f"/{LONG}", f"/v1/models/{LONG}"):
        answer = request(app, "GET", path)
        assert answer.status_code == 404
        assert len(error_of(answer)["message"]) < 250


def test_what_a_long_name_was_meant_to_be_is_not_looked_for(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for = []
    monkeypatch.setattr(
        difflib, "get_close_matches", lambda name, *_, **__: looked_for.append(name) or []
    )
    embed(app, {"input": "a", LONG: 1})
    embed(app, {"input": "a", "x": 1})
    assert looked_for == ["x"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"input": "\xff"}', "not UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"input": "a", "dimensions": ' + b"9" * 5000 + b"}", "a number in it is too long"),
        (b'{"input": "a"', "Expecting"),
        (b"[1]", "not a JSON object"),
    ],
)
def test_a_body_that_cannot_be_read_is_bad_json(app: FastAPI, content: bytes, why: str) -> None:
    answer = request(app, "POST", "/v1/embeddings", content=content)
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "bad_json"
    assert why in error["message"]
    assert "Send one JSON object in UTF-8" in error["message"]


def test_half_a_surrogate_pair_as_a_name_is_refused(app: FastAPI) -> None:
    content = rb'{"input": "a", "\ud800": 1}'
    answer = request(app, "POST", "/v1/embeddings", content=content)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "unknown_parameter"


def test_a_client_that_hangs_up_while_it_sends_is_a_499(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang_up() -> None:
        call = Call(app)
        call.send(b'{"input": ')
        call.hang_up()
        await call.over

    with caplog.at_level(logging.INFO, "millpond.access"):
        asyncio.run(hang_up())
    assert caplog.records[-1].getMessage() == "POST /v1/embeddings 499"
    metrics = request(app, "GET", "/metrics").text
    assert 'method="POST",route="/v1/embeddings",status="499"} 1.0' in metrics
