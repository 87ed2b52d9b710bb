"""What `/v1/embed` and `/v2/embed` take, give and refuse, as Cohere's API does."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import httpx
import numpy as np
import pytest
from fakes import FakeRunner, vectors_for
from fastapi import FastAPI
from serving import NAME, fake_app, request

import millpond
from millpond.server.calls.body_parser import LARGE_BYTES
from millpond.server.routes.cohere import scaled_int8
from millpond.server.settings import AppSettings

TEXTS = ["a b", "c", "d e f"]
KINDS = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


@pytest.fixture
def app() -> Any:
    with fake_app() as app:
        yield app


def embed(app: FastAPI, version: str = "v2", /, **body: Any) -> httpx.Response:
    return request(app, "POST", f"/{version}/embed", json=body)


def test_the_second_version_answers_by_type(app: FastAPI) -> None:
    answer = embed(app, texts=TEXTS, model=NAME, embedding_types=KINDS)
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"] == answer.headers["x-request-id"]
    assert (body["response_type"], body["texts"]) == ("embeddings_by_type", TEXTS)
    assert body["meta"] == {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 6}}
    found, vectors = body["embeddings"], vectors_for(TEXTS)
    assert list(found) == KINDS
    np.testing.assert_array_equal(np.array(found["float"], np.float32), vectors)
    decoded = [np.frombuffer(b64decode(one), "<f4") for one in found["base64"]]
    np.testing.assert_array_equal(decoded, vectors)
    for kind in ("binary", "ubinary"):
        np.testing.assert_array_equal(found[kind], millpond.quantize(vectors, kind))
    np.testing.assert_array_equal(found["int8"], scaled_int8(vectors))
    np.testing.assert_array_equal(np.array(found["uint8"]) - 128, found["int8"])


def test_scaled_vectors_keep_their_direction_and_depend_on_nothing_else() -> None:
    vectors = np.random.default_rng(1).standard_normal((50, 384)).astype(np.float32)
    scaled = scaled_int8(vectors)
    assert np.abs(scaled.astype(int)).max(axis=1).tolist() == [127] * 50
    cosines = np.diag(millpond.similarity(vectors, scaled.astype(np.float32)))
    assert cosines.min() > 0.9998
    np.testing.assert_array_equal(scaled_int8(vectors[3:4]), scaled[3:4])
    assert not scaled_int8(np.zeros((1, 4), np.float32)).any()


def test_without_types_the_second_version_gives_floats_and_the_first_a_list(app: FastAPI) -> None:
    assert list(embed(app, texts=TEXTS).json()["embeddings"]) == ["float"]
    first = embed(app, "v1", texts=TEXTS).json()
    assert first["response_type"] == "embeddings_floats"
    assert first["meta"]["api_version"] == {"version": "1"}
    np.testing.assert_array_equal(np.array(first["embeddings"], np.float32), vectors_for(TEXTS))
    by_type = embed(app, "v1", texts=TEXTS, embedding_types=["int8"]).json()
    assert by_type["response_type"] == "embeddings_by_type"


def test_the_type_of_input_chooses_the_prompt() -> None:
    prompts = {"query": "q: ", "document": "d: ", "clustering": "c: "}
    with fake_app(spec={"prompts": prompts}) as app:
        for kind, prompt in (
            ("search_query", "q: "),
            ("SEARCH_DOCUMENT", "d: "),
            ("clustering", "c: "),
            ("classification", ""),
        ):
            found = embed(app, texts=["a"], input_type=kind).json()["embeddings"]["float"]
            np.testing.assert_array_equal(np.array(found, np.float32), vectors_for([f"{prompt}a"]))


def test_texts_may_come_as_inputs(app: FastAPI) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    found, expected = embed(app, inputs=inputs).json(), embed(app, texts=TEXTS).json()
    assert found | {"id": ""} == expected | {"id": ""}


def test_dimensions_and_truncation() -> None:
    with fake_app(FakeRunner(max_length=2)) as app:
        short = embed(app, texts=["a"], output_dimension=3).json()["embeddings"]["float"]
        assert len(short[0]) == 3
        start = embed(app, texts=["a b c"], truncate="START").json()["embeddings"]
        assert start == embed(app, texts=["b c"]).json()["embeddings"]
        refused = embed(app, texts=["a b c"], truncate="NONE")
        assert refused.status_code == 400
        assert embed(app, texts=["a b c"], max_tokens=512).status_code == 200
        fewer = embed(app, texts=["a b c"], max_tokens=1)
        assert "max_tokens" in fewer.json()["message"]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "neither holds a text"),
        ({"texts": ["a"], "inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "send one"),
        ({"images": ["data:image/png;base64,"]}, "images"),
        ({"texts": ["a"], "input_type": "image"}, "input_type"),
        ({"texts": ["a"], "embedding_types": ["float16"]}, "embedding_types"),
        ({"texts": ["a"], "output_dimension": 9}, "dimensions"),
        ({"texts": ["a"], "priority": -1}, "priority"),
        ({"texts": ["a"], "modle": "b"}, "did you mean model?"),
    ],
)
def test_what_is_wrong_is_said_in_its_format(app: FastAPI, body: dict[str, Any], part: str) -> None:
    answer = embed(app, **body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["message"]
    assert part in answer.json()["message"]


def test_an_unknown_model_and_a_missing_key_are_told_in_its_format() -> None:
    key = {"authorization": "Bearer key"}
    with fake_app(settings=AppSettings(api_keys=("key",))) as app:
        answer = request(app, "POST", "/v2/embed", json={"texts": ["a"]})
        assert (answer.status_code, list(answer.json())) == (401, ["message"])
        body = {"texts": ["a"], "model": "embed-v4.0"}
        missing = request(app, "POST", "/v2/embed", json=body, headers=key)
        assert missing.status_code == 404
        assert "embed-v4.0" in missing.json()["message"]


def test_one_query_is_interactive_and_a_low_priority_is_bulk() -> None:
    runner = FakeRunner()
    with fake_app(runner) as app:
        for options in ({"input_type": "search_query"}, {"priority": 5}):
            assert embed(app, texts=["a"], **options).status_code == 200
        metrics = request(app, "GET", "/metrics").text
    assert 'route="/v2/embed",status="200"} 2.0' in metrics


def test_a_large_body_is_answered_as_a_small_one() -> None:
    long = "a b " * (LARGE_BYTES // 4)
    inputs = [{"content": [{"type": "text", "text": text}]} for text in ("a", long)]
    with fake_app(FakeRunner(max_length=2)) as app:
        answer = embed(app, inputs=inputs)
        assert answer.json()["texts"] == ["a", long]
        assert len(embed(app, texts=["a", long]).json()["embeddings"]["float"]) == 2
        app.state.body_parser.close()
