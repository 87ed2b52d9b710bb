"""What `POST /v1/embeddings` takes, gives and refuses."""

from __future__ import annotations

import asyncio
import base64
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from fakes import DIMENSION, FakeRunner, start_engine, token_ids, vectors_for, words
from fastapi import FastAPI
from serving import NAME, client_of, embed, error_of, fake_app, request

from millpond.server.app import create_app
from millpond.server.calls.encoding import embedding_slices
from millpond.server.models import ServedModel
from millpond.server.settings import AppSettings


@pytest.fixture
def app() -> Any:
    with fake_app() as app:
        yield app


def floats(answer: Any) -> np.ndarray:
    return np.array([item["embedding"] for item in answer.json()["data"]], dtype=np.float32)


def test_the_answer_has_openais_shape_and_nothing_else(app: FastAPI) -> None:
    answer = embed(app, {"model": NAME, "input": ["a b", "c"]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["object", "data", "model", "usage"]
    assert (body["object"], body["model"]) == ("list", NAME)
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [list(item) for item in body["data"]] == [["object", "index", "embedding"]] * 2
    assert [(item["object"], item["index"]) for item in body["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    np.testing.assert_array_equal(floats(answer), vectors_for(["a b", "c"]))


def test_a_single_text_gives_a_list_of_one(app: FastAPI) -> None:
    np.testing.assert_array_equal(floats(embed(app, {"input": "a b"})), vectors_for(["a b"]))


def test_infinitys_paths_have_no_version(app: FastAPI) -> None:
    body = {"input": ["a b", "c"]}
    assert request(app, "POST", "/embeddings", json=body).json() == embed(app, body).json()
    assert request(app, "GET", "/models").json() == request(app, "GET", "/v1/models").json()
    assert not {"/embeddings", "/models"} & app.openapi()["paths"].keys()


def test_base64_is_the_bytes_of_little_endian_float32(app: FastAPI) -> None:
    answer = embed(app, {"input": ["a", "b"], "encoding_format": "base64"})
    rows = [base64.b64decode(item["embedding"]) for item in answer.json()["data"]]
    found = np.array([np.frombuffer(row, dtype="<f4") for row in rows])
    np.testing.assert_array_equal(found, vectors_for(["a", "b"]))


def test_floats_are_the_shortest_that_are_exact() -> None:
    vectors = np.random.default_rng(3).normal(size=(4, 500)).astype(np.float32) * 1e-2
    body = b"".join(embedding_slices(vectors, model="m", tokens=1, as_base64=False))
    values = [
        text for row in json.loads(body, parse_float=str)["data"] for text in row["embedding"]
    ]
    assert [np.float32(text) for text in values] == vectors.ravel().tolist()
    digits = [len(Decimal(text).normalize().as_tuple().digits) for text in values]
    shortest = [len(Decimal(str(value)).normalize().as_tuple().digits) for value in vectors.ravel()]
    assert digits == shortest


def test_token_ids_are_embedded_as_they_are(app: FastAPI) -> None:
    a, b = (token_ids(text).tolist() for text in ("a b", "c"))
    np.testing.assert_array_equal(floats(embed(app, {"input": a})), vectors_for(["a b"]))
    np.testing.assert_array_equal(floats(embed(app, {"input": [a, b]})), vectors_for(["a b", "c"]))


def test_options_reach_the_engine() -> None:
    with fake_app(FakeRunner(max_length=3)) as app:
        asked = embed(app, {"input": "a", "input_type": "query"})
        np.testing.assert_array_equal(floats(asked), vectors_for(["a"], "ask: "))
        titled = embed(app, {"input": "a", "prompt_name": "title"})
        np.testing.assert_array_equal(floats(titled), vectors_for(["a"], "title: "))
        cut = embed(app, {"input": "a b c d", "truncate": "start"})
        np.testing.assert_array_equal(floats(cut), vectors_for(["b c d"]))
        assert cut.headers["x-millpond-truncated-texts"] == "1"
        short = floats(embed(app, {"input": "a", "dimensions": 3}))
        assert short.shape == (1, 3)
        assert np.linalg.norm(short) == pytest.approx(1)
        unit = floats(embed(app, {"input": "a", "normalize": True, "user": "u"}))
        assert np.linalg.norm(unit) == pytest.approx(1)


@pytest.mark.parametrize(
    ("body", "priority"),
    [
        ({"input": "a"}, "interactive"),
        ({"input": ["a", "b"]}, "bulk"),
        ({"input": ["a", "b"], "input_type": "query"}, "interactive"),
        ({"input": ["a", "b"], "priority": "interactive"}, "interactive"),
        ({"input": "a", "priority": "bulk"}, "bulk"),
        ({"input": ["a"]}, "interactive"),
        ({"input": "a" * 2**16}, "interactive"),
        ({"input": "a" * (2**16 + 1)}, "bulk"),
        ({"input": ["a" * (2**16 + 1)]}, "bulk"),
        ({"input": "a" * (2**16 + 1), "input_type": "query"}, "interactive"),
        ({"input": [[1, 2]]}, "interactive"),
        ({"input": [1, 2]}, "interactive"),
        ({"input": [[1], [2]]}, "bulk"),
    ],
)
def test_the_priority_asked_for_reaches_the_engine(body: dict[str, Any], priority: str) -> None:
    runner = FakeRunner()
    with fake_app(runner) as app:
        assert embed(app, body).status_code == 200
    assert {name for batch in runner.batches for name in batch.priorities} == {priority}


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "input", "Field required"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": None}, "input", "a text, a list of texts, the token ids of one text"),
        ({"input": 7}, "input", "a text, a list of texts, the token ids of one text"),
        ({"input": ["a", 7, "b"]}, "input[1]", "valid string"),
        ({"input": [1, "a"]}, "input[1]", "valid integer"),
        ({"input": [1, -1]}, "input[1]", "greater than or equal to 0"),
        ({"input": [True]}, "input[0]", "valid integer"),
        ({"input": [[1], [2, 2.5]]}, "input[1][1]", "valid integer"),
        ({"input": [[1], []]}, "input[1]", "at least 1 item"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "dimensions": "4"}, "dimensions", "valid integer"),
        ({"input": "a", "dimensions": DIMENSION + 1}, "dimensions", f"has {DIMENSION}"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "input_type": "dance"}, "input_type", "'query' or 'document'"),
        ({"input": "a", "prompt_name": "dance"}, "prompt_name", "'dance'; choose among 'document'"),
        ({"input": "a", "dimension": 4}, "dimension", "did you mean dimensions?"),
        ({"input": [1, 2], "input_type": "query"}, "input_type", "in front of token ids"),
        ({"input": [1, 2], "prompt_name": "title"}, "prompt_name", "in front of token ids"),
        ({"input": [1, 2], "prompt_name": "dance"}, "prompt_name", "no prompt called 'dance'"),
        ({"input": "a", "model": 3}, "model", "valid string"),
    ],
)
def test_what_cannot_be_meant_is_a_400_that_names_it(
    app: FastAPI, body: dict[str, Any], param: str | None, said: str
) -> None:
    answer = embed(app, body)
    error = error_of(answer)
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert said in error["message"]


def test_a_text_that_is_too_long_is_refused_on_request() -> None:
    with fake_app(FakeRunner(max_length=2)) as app:
        answer = embed(app, {"input": ["a", "a b c"], "truncate": "error"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "context_length_exceeded"
    assert "text 1" in error["message"]


def test_a_text_the_model_fails_on_is_a_422_that_names_it() -> None:
    with fake_app(FakeRunner(not_finite_on=["bad"])) as app:
        answer = embed(app, {"input": ["good", "bad"]})
        assert answer.status_code == 422
        assert error_of(answer)["code"] == "text_failed"
        assert "text 1" in error_of(answer)["message"]
        assert embed(app, {"input": "good"}).status_code == 200


def test_more_inputs_than_openai_takes_are_a_413(app: FastAPI) -> None:
    assert embed(app, {"input": ["a"] * 2048}).status_code == 200
    for too_many in (["a"] * 2049, [[1]] * 2049):
        answer = embed(app, {"input": too_many})
        assert answer.status_code == 413
        assert "2048" in error_of(answer)["message"]


# Which model.


def test_an_unknown_model_is_a_404(app: FastAPI) -> None:
    answer = embed(app, {"model": "gpt-5", "input": "a"})
    assert answer.status_code == 404
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert NAME in error["message"]


def test_several_models_answer_under_their_own_names() -> None:
    with start_engine(FakeRunner()) as first, start_engine(FakeRunner(scale=2)) as second:
        models = [ServedModel.of(first, ["one", "uno"]), ServedModel.of(second, ["two"])]
        app = create_app(models)
        one, uno, two = (embed(app, {"model": n, "input": "a"}) for n in ("one", "uno", "two"))
        assert [answer.json()["model"] for answer in (one, uno, two)] == ["one", "uno", "two"]
        np.testing.assert_array_equal(floats(one), floats(uno))
        np.testing.assert_array_equal(floats(two), 2 * floats(one))
        missing = embed(app, {"input": "a"})
        assert missing.status_code == 400
        assert error_of(missing)["param"] == "model"


# Token ids that are not this model's.


def test_ids_without_the_models_special_tokens_are_refused() -> None:
    with fake_app(FakeRunner(special_ends=([101], [102]))) as app:
        a = int(token_ids("a")[0])
        assert embed(app, {"input": [101, a, 102]}).status_code == 200
        assert embed(app, {"input": [101, 102]}).status_code == 200
        for foreign in ([a], [101, a], [a, 102], [[101, a, 102], [a]], [102, a, 101], [101]):
            answer = embed(app, {"input": foreign})
            assert answer.status_code == 400
            error = error_of(answer)
            assert error["code"] == "invalid_token_ids"
            assert "check_embedding_ctx_length=False" in error["message"]
        assert "input[1]" in error_of(embed(app, {"input": [[101, a, 102], [a]]}))["message"]


def test_raw_token_ids_are_taken_where_the_operator_allows() -> None:
    settings = AppSettings(allow_raw_token_ids=True)
    with fake_app(FakeRunner(special_ends=([101], [102])), settings) as app:
        answer = embed(app, {"input": token_ids("a b").tolist()})
        np.testing.assert_array_equal(floats(answer), vectors_for(["a b"]))


def test_ids_are_whole_texts_so_a_default_prompt_is_not_put_before_them() -> None:
    with fake_app(spec={"default_prompt_name": "title"}) as app:
        np.testing.assert_array_equal(
            floats(embed(app, {"input": "a"})), vectors_for(["a"], "title: ")
        )
        ids = token_ids("title: a").tolist()
        np.testing.assert_array_equal(
            floats(embed(app, {"input": ids})), vectors_for(["a"], "title: ")
        )


# Many at once.


def test_every_one_of_many_requests_gets_its_own_vectors(app: FastAPI) -> None:
    async def one(client: Any, number: int) -> None:
        texts = [f"r{number} t{place} {words(place)}" for place in range(number % 5 + 1)]
        answer = await client.post("/v1/embeddings", json={"input": texts})
        np.testing.assert_array_equal(floats(answer), vectors_for(texts))

    async def all_at_once() -> None:
        async with client_of(app) as client:
            await asyncio.gather(*(one(client, number) for number in range(100)))

    asyncio.run(all_at_once())
