"""What the routes of Text Embeddings Inference take, give and refuse."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from fakes import FakeRunner, held_engine, vectors_for
from fastapi import FastAPI
from serving import NAME, fake_app, fake_scoring_app, request

import millpond
from millpond.server.app import create_app
from millpond.server.calls.body_parser import LARGE_BYTES
from millpond.server.models import ServedModel
from millpond.server.settings import AppSettings

TEXTS = ["a b", "c", "d e f"]


@pytest.fixture
def app() -> Any:
    with fake_app() as app:
        yield app


def post(app: FastAPI, path: str, /, **body: Any) -> httpx.Response:
    return request(app, "POST", path, json=body)


def error_of(answer: httpx.Response) -> str:
    """The message, after a look at the error's shape."""
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error", "error_type"]
    message: str = answer.json()["error"]
    return message


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_vectors_have_unit_length_unless_asked_otherwise(app: FastAPI, path: str) -> None:
    answer = post(app, path, inputs=TEXTS)
    assert answer.status_code == 200
    assert answer.headers["x-millpond-truncated-texts"] == "0"
    np.testing.assert_allclose(answer.json(), unit(vectors_for(TEXTS)), rtol=1e-6)
    plain = post(app, path, inputs=TEXTS, normalize=False).json()
    np.testing.assert_allclose(plain, vectors_for(TEXTS), rtol=1e-6)


def test_one_text_is_a_list_of_one_and_few_dimensions_are_the_first(app: FastAPI) -> None:
    (vector,) = post(app, "/embed", inputs="a b", dimensions=3).json()
    np.testing.assert_allclose([vector], unit(vectors_for(["a b"])[:, :3]), rtol=1e-6)


def test_truncation_is_on_until_refused() -> None:
    with fake_app(FakeRunner(max_length=2)) as app:
        kept = post(app, "/embed", inputs=["a b c"], truncate=True)
        assert kept.json() == post(app, "/embed", inputs=["a b"]).json()
        assert kept.headers["x-millpond-truncated-texts"] == "1"
        left = post(app, "/embed", inputs=["a b c"], truncate=True, truncation_direction="Left")
        assert left.json() == post(app, "/embed", inputs=["b c"]).json()
        refused = post(app, "/embed", inputs=["a", "a b c"], truncate=False)
        assert refused.status_code == 400
        assert "inputs[1]" in error_of(refused) or "text 1" in error_of(refused)


@pytest.mark.parametrize("path", ["/similarity", "/"])
def test_similarities_are_cosines(app: FastAPI, path: str) -> None:
    inputs = {"source_sentence": "a b", "sentences": TEXTS}
    found = post(app, path, inputs=inputs, parameters={"truncate": True}).json()
    expected = millpond.similarity(vectors_for(["a b"])[0], vectors_for(TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0] == pytest.approx(1, abs=1e-6)


def test_the_root_ranks_texts_where_there_is_a_reranker() -> None:
    with fake_scoring_app("relevant") as app:
        body = {"query": "a", "texts": TEXTS}
        assert post(app, "/", **body).json() == post(app, "/rerank", **body).json()


def test_ids_are_decoded_with_and_without_special_tokens() -> None:
    runner = FakeRunner(special_ends=([101], [102]))
    runner.words |= {101: "[CLS]", 102: "[SEP]"}
    with fake_app(runner) as app:
        ids = post(app, "/tokenize", prompt="a b").json()["tokens"]
        assert post(app, "/decode", ids=ids).json() == ["a b"]
        whole = post(app, "/decode", ids=[ids, ids[:2]], skip_special_tokens=False).json()
        assert whole == ["[CLS] a b [SEP]", "[CLS] a"]
        assert post(app, "/decode", ids=[]).json() == [""]
        assert "ids" in error_of(post(app, "/decode", ids=[[10**9]]))


def test_info_describes_the_first_model_or_the_named_one(app: FastAPI) -> None:
    info = request(app, "GET", "/info").json()
    assert info["model_id"] == NAME
    assert info["model_type"] == {"embedding": {"pooling": "Transformer"}}
    assert info["max_batch_tokens"] == 64
    assert info["version"] == millpond.__version__
    assert request(app, "GET", f"/info?model={NAME}").json() == info
    missing = request(app, "GET", "/info?model=other")
    assert missing.status_code == 404
    assert "other" in error_of(missing)


@pytest.mark.parametrize(
    ("max_length", "max_queue_tokens", "texts"), [(5, 20, 4), (5, 4, 1), (None, 640, 10)]
)
def test_info_tells_how_many_of_the_longest_texts_may_wait(
    max_length: int | None, max_queue_tokens: int, texts: int
) -> None:
    runner = FakeRunner(max_length=max_length)
    with fake_app(runner, max_queue_tokens=max_queue_tokens) as app:
        assert request(app, "GET", "/info").json()["max_concurrent_requests"] == texts


@pytest.mark.parametrize("labels", [("relevant",), ("no", "yes")])
def test_info_of_a_model_with_labels(labels: tuple[str, ...]) -> None:
    with fake_scoring_app(*labels) as app:
        (kind,) = request(app, "GET", "/info").json()["model_type"].items()
    numbers = {str(place): label for place, label in enumerate(labels)}
    expected = {"id2label": numbers, "label2id": {label: int(i) for i, label in numbers.items()}}
    assert kind == ("reranker" if len(labels) == 1 else "classifier", expected)


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("/embed", {}, "inputs"),
        ("/embed", {"inputs": []}, "at least 1"),
        ("/embed", {"inputs": ["a"], "inputz": 1}, "did you mean inputs?"),
        ("/embed", {"inputs": ["a"], "encoding_format": "base64"}, "'float'"),
        ("/similarity", {"inputs": {"source_sentence": "a"}}, "inputs.sentences"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "at least 1"),
        ("/similarity", {"inputs": ["a"]}, "inputs"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"nope": 1}},
            "parameters.nope",
        ),
        ("/decode", {"ids": ["a"]}, "ids"),
        ("/predict", {"inputs": "a"}, "/v1/embeddings"),
        ("/", {"query": "a", "texts": ["b"]}, "/v1/embeddings"),
    ],
)
def test_what_is_wrong_is_said_in_its_format(
    app: FastAPI, path: str, body: dict[str, Any], part: str
) -> None:
    answer = post(app, path, **body)
    assert answer.status_code == 400
    assert answer.json()["error_type"] == "Validation"
    assert part in error_of(answer)


def test_kinds_of_errors() -> None:
    runner = FakeRunner(raises_on=["bad"])
    with fake_app(runner, AppSettings(max_body_bytes=1000)) as app:
        failed = post(app, "/embed", inputs=["a", "bad"])
        assert (failed.status_code, failed.json()["error_type"]) == (422, "Backend")
        large = post(app, "/embed", inputs="a" * 2000)
        assert (large.status_code, large.json()["error_type"]) == (413, "Validation")


def test_a_full_queue_is_told_in_their_format() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner, max_queue_tokens=8) as engine:
        app = create_app([ServedModel.of(engine)])
        engine.submit([[1] * 4])
        runner.wait_for_batches(1)
        engine.submit([[2] * 4, [3] * 4])
        full = post(app, "/embed", inputs=[[1] * 4, [2] * 4])
    assert (full.status_code, full.json()["error_type"]) == (429, "Overloaded")
    assert full.headers["retry-after"]


def test_a_key_guards_them_and_its_lack_is_told_in_their_format() -> None:
    with fake_app(settings=AppSettings(api_keys=("key",), root_path="/pond")) as app:
        for method, path in (("POST", "/embed"), ("POST", "/"), ("GET", "/info")):
            answer = request(app, method, f"/pond{path}", json={"inputs": "a"})
            assert answer.status_code == 401
            assert "Bearer" in error_of(answer)


def test_token_ids_of_another_tokenizer_are_refused_by_the_name_of_the_field() -> None:
    with fake_app(FakeRunner(special_ends=([101], [102]))) as app:
        answer = post(app, "/embed", inputs=[[101, 5, 102], [5]])
        assert error_of(answer).startswith("inputs[1]: these token ids are not from")


def test_a_large_body_is_answered_as_a_small_one(app: FastAPI) -> None:
    long = "a b " * (LARGE_BYTES // 4)
    inputs = {"source_sentence": "a b", "sentences": ["a b", long]}
    with fake_app(FakeRunner(max_length=2)) as app:
        found = post(app, "/similarity", inputs=inputs)
        assert found.status_code == 200
        assert found.json() == pytest.approx([1, 1], abs=1e-6)
        assert len(post(app, "/embed", inputs=["a", long]).json()) == 2
        app.state.body_parser.close()
