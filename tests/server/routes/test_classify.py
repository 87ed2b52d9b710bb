"""What `/classify` and `/predict` take, give and refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import FakeRunner, scores_for, start_engine, vectors_for
from fastapi import FastAPI
from serving import NAME, fake_scoring_app, request

from millpond.checkpoint.kinds.scoring import ScoringSpec
from millpond.server.app import create_app
from millpond.server.models import ServedModel

LABELS = ("no", "yes", "maybe")
TEXTS = ["a b", "c", ""]


@pytest.fixture
def app() -> Any:
    with fake_scoring_app(*LABELS) as app:
        yield app


def post(app: FastAPI, path: str, /, **body: Any) -> Any:
    return request(app, "POST", path, json=body)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def of_texts(*texts: str) -> np.ndarray:
    return vectors_for(texts)[:, : len(LABELS)]


def assert_classes(found: list[dict[str, Any]], scores: np.ndarray) -> None:
    """Labels with their scores, the best first."""
    order = np.argsort(-scores)
    assert [one["label"] for one in found] == [LABELS[place] for place in order]
    np.testing.assert_allclose([one["score"] for one in found], scores[order], rtol=1e-6)


def test_vllms_shape_has_the_probabilities_in_the_order_of_the_labels(app: FastAPI) -> None:
    answer = post(app, "/classify", input=TEXTS)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", NAME)
    assert body["id"] == answer.headers["x-request-id"]
    assert body["usage"]["prompt_tokens"] == 4
    for index, (one, row) in enumerate(zip(body["data"], softmax(of_texts(*TEXTS)), strict=True)):
        assert (one["index"], one["num_classes"]) == (index, 3)
        assert one["label"] == LABELS[row.argmax()]
        np.testing.assert_allclose(one["probs"], row, rtol=1e-6)


@pytest.mark.parametrize("raw", [False, True])
def test_infinitys_shape_is_given_to_who_asks_for_raw_scores_or_not(
    app: FastAPI, raw: bool
) -> None:
    body = post(app, "/classify", input=TEXTS, raw_scores=raw).json()
    assert body["object"] == "classify"
    rows = of_texts(*TEXTS)
    for found, row in zip(body["data"], rows if raw else softmax(rows), strict=True):
        assert_classes(found, row)


def test_a_single_text_gives_a_list_of_one(app: FastAPI) -> None:
    assert len(post(app, "/classify", input="a b").json()["data"]) == 1


def test_predict_takes_one_text_or_pair_or_several(app: FastAPI) -> None:
    for inputs in ("a b", ["a b"]):
        assert_classes(post(app, "/predict", inputs=inputs).json(), softmax(of_texts("a b"))[0])
    pair = scores_for([("a", "b c")], len(LABELS))
    assert_classes(post(app, "/predict", inputs=["a", "b c"]).json(), softmax(pair)[0])
    assert_classes(post(app, "/predict", inputs=["a", "b c"], raw_scores=True).json(), pair[0])
    texts = post(app, "/predict", inputs=[["a b"], ["c"]]).json()
    for found, row in zip(texts, softmax(of_texts("a b", "c")), strict=True):
        assert_classes(found, row)
    (found,) = post(app, "/predict", inputs=[["a", "b c"]]).json()
    assert_classes(found, softmax(pair)[0])


@pytest.mark.parametrize(
    ("inputs", "part"),
    [
        ([], "at least 1"),
        (["a", "b", "c"], "at most 2"),
        ([["a", "b"], ["c"]], "some are pairs"),
        ([["a", "b", "c"]], "at most 2"),
        ([[1]], "string"),
        (3, "list"),
    ],
)
def test_other_inputs_are_refused(app: FastAPI, inputs: Any, part: str) -> None:
    answer = post(app, "/predict", inputs=inputs)
    assert answer.status_code in (400, 413)
    assert answer.json()["error_type"] == "Validation"
    assert part in answer.json()["error"]


def test_classes_of_tokens_have_no_route() -> None:
    scoring = ScoringSpec(
        labels=LABELS, activation="none", class_activation="softmax", per_token=True
    )
    engine = start_engine(FakeRunner(), spec={"scoring": scoring})
    with engine:
        app = create_app([ServedModel.of(engine)])
        for path, field in (("/classify", "input"), ("/predict", "inputs")):
            answer = post(app, path, **{field: "a"})
            assert answer.status_code == 400
            assert "a class for each token" in str(answer.json()["error"])


def test_a_reranker_has_one_class() -> None:
    with fake_scoring_app() as app:
        (found,) = post(app, "/predict", inputs=["q", "a"]).json()
        assert found["label"] == "relevance"
        (one,) = post(app, "/classify", input="a").json()["data"]
        assert one["num_classes"] == 1
