"""What a request may cost however it is made, and how much of it an answer repeats."""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from serving import Call, client_of, embed, error_of, fake_app, request

from millpond import Engine
from millpond.server.errors import ApiError, error_response
from millpond.server.routes.tokens import LARGE, SMALL_AT_A_TIME
from millpond.server.schemas.embeddings import MAX_TOKENIZED, DetokenizeRequest, EmbeddingRequest
from millpond.server.schemas.scores import (
    ClassifyRequest,
    PredictRequest,
    RerankRequest,
    RerankTextsRequest,
    ScoreRequest,
)

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
        (RerankRequest, {"query": "q", "documents": [{"image": "a"}] * 2000}),
        (RerankTextsRequest, {"query": "q", "texts": [1] * MANY}),
        (ScoreRequest, {"queries": "q", "documents": [1] * MANY}),
        (ClassifyRequest, {"input": [1] * MANY}),
        (PredictRequest, {"inputs": ["a"] * MANY}),
        (PredictRequest, {"inputs": [[]] * MANY}),
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


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/tokenize", {"prompt": "a" * (MAX_TOKENIZED + 1)}, "prompt: at most 1048576 characters"),
        ("/detokenize", {"tokens": [1] * (MAX_TOKENIZED + 1)}, "tokens: at most 1048576 items"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "at most 2048 inputs"),
    ],
)
def test_what_is_too_much_for_a_route_is_a_413(
    app: FastAPI, path: str, body: dict[str, Any], said: str
) -> None:
    answer = request(app, "POST", path, json=body)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"
    assert said in error_of(answer)["message"]


@pytest.mark.parametrize(("size", "most"), [(LARGE + 1, 1), (10, SMALL_AT_A_TIME)])
def test_few_texts_are_tokenised_at_a_time(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, size: int, most: int
) -> None:
    lock, one_too_many = threading.Lock(), threading.Event()
    running: list[int] = [0]

    def tokenize(*_: Any, **__: Any) -> list[list[int]]:
        with lock:
            running.append(running[-1] + 1)
        if running[-1] > most:
            one_too_many.set()
        one_too_many.wait(0.05)  # it must not come
        with lock:
            running.append(running[-1] - 1)
        return [[1]]

    async def ask() -> list[int]:
        async with client_of(app) as client:
            calls = [client.post("/tokenize", json={"prompt": "a" * size}) for _ in range(6)]
            return [answer.status_code for answer in await asyncio.gather(*calls)]

    monkeypatch.setattr(Engine, "tokenize", tokenize)
    assert asyncio.run(ask()) == [200] * 6
    assert max(running) == most


@pytest.mark.parametrize("length", ["0" * 5000, "9" * 5000, "1e3", "-1", "²", "1,1", ""])
def test_a_length_that_is_none_is_a_short_400(app: FastAPI, length: str) -> None:
    for method, path in (("POST", "/v1/embeddings"), ("GET", "/health")):
        headers = {"content-length": length.encode("latin-1")}
        answer = request(app, method, path, headers=headers)
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "invalid_header"
        assert answer.headers["connection"] == "close"
        assert len(answer.content) < 300


@pytest.mark.parametrize(
    "field",
    [
        '"dimensions": ' + "9" * 4000,
        '"dimensions": -' + "9" * 4000,
        '"dimensions": 1e999',
        '"dimensions": "' + "9" * 4000 + '"',
        '"encoding_format": "' + LONG + '"',
        '"input_type": "' + LONG + '"',
        '"truncate": ' + "9" * 4000,
        '"priority": "' + LONG + '"',
        '"normalize": "' + LONG + '"',
        '"input": [' + "9" * 4000 + "]",
        '"input": {"' + LONG + '": 1}',
        '"model": ' + "9" * 4000,
    ],
    ids=lambda field: field[:20],
)
def test_a_long_value_is_not_repeated(app: FastAPI, field: str) -> None:
    content = '{"input": "a", %s}' % field  # noqa: UP031
    answer = request(app, "POST", "/v1/embeddings", content=content.encode())
    assert answer.status_code == 400
    assert error_of(answer)["param"].partition("[")[0] == field.split('"')[1]
    assert len(answer.content) < 500


def test_long_headers_are_not_repeated(app: FastAPI) -> None:
    for name in ("content-type", "authorization", "x-request-id", "content-encoding"):
        answer = embed(app, {"input": "a"}, headers={name: LONG})
        assert len(answer.content) < 6000
        assert all(len(value) < 500 for value in answer.headers.values())


def test_no_message_is_long_whoever_wrote_it() -> None:
    body = json.loads(error_response(ApiError(400, LONG)).body)
    assert len(body["error"]["message"]) == 2001


def test_a_method_nobody_knows_is_no_new_metric(app: FastAPI) -> None:
    for method in ("BREW", "WHEN"):
        assert request(app, method, "/health").status_code == 405
    metrics = request(app, "GET", "/metrics").text
    assert 'method="other",route="/health",status="405"} 2.0' in metrics
    assert "BREW" not in metrics
