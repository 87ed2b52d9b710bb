"""What `/embed_all` and `/pooling` take, give and refuse, and multi-vector models that rank."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from serving import error_of, fake_app, fake_scoring_app, request

from millpond import Engine
from millpond.server.app import create_app
from millpond.server.models import ServedModel
from millpond.server.settings import AppSettings
from multi_vector import DIMENSION, save_multi_vector

TEXTS = ["the stone grinds the grain", "mill", ""]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = save_multi_vector(tmp_path_factory.mktemp("multi_vector"))
    with Engine(str(folder), dtype="float32", device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def app(engine: Engine) -> FastAPI:
    return create_app([ServedModel.of(engine, ["late"])])


def post(app: FastAPI, path: str, /, **body: Any) -> Any:
    return request(app, "POST", path, json=body)


def assert_vectors(found: list[Any], expected: Any) -> None:
    assert [len(each) for each in found] == expected.counts.tolist()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.array(ours, dtype=np.float32), theirs)


@pytest.mark.parametrize("task", ["query", "document", None])
def test_embed_all_is_in_tei_s_shape(task: str | None, app: FastAPI, engine: Engine) -> None:
    answer = post(app, "/embed_all", inputs=TEXTS, input_type=task)
    assert answer.status_code == 200
    assert_vectors(answer.json(), engine.embed_tokens(TEXTS, task=task))
    one = post(app, "/embed_all", inputs=TEXTS[0], input_type=task)
    assert one.json() == answer.json()[:1]
    assert post(app, "/embed_all", inputs=TEXTS[:1]).headers["content-type"] == "application/json"


def test_token_ids_and_a_pool_factor(app: FastAPI, engine: Engine) -> None:
    ids = engine.tokenize(TEXTS)
    assert_vectors(post(app, "/embed_all", inputs=ids).json(), engine.embed_tokens(ids))
    found = post(app, "/embed_all", inputs=TEXTS, input_type="document", pool_factor=2).json()
    assert_vectors(found, engine.embed_tokens(TEXTS, task="document", pool_factor=2))
    assert error_of(post(app, "/embed_all", inputs=[[7, 8]]))["code"] == "invalid_token_ids"


def test_a_long_text_is_cut_where_tei_says(app: FastAPI, engine: Engine) -> None:
    long = "stone " * 60 + "mill"
    for body, side in (
        ({"truncate": True, "truncation_direction": "left"}, "start"),
        ({"truncation_direction": "Right"}, "end"),
        ({"truncate": True}, None),
    ):
        answer = post(app, "/embed_all", inputs=[long], **body)
        assert_vectors(answer.json(), engine.embed_tokens([long], truncate=side))  # type: ignore[arg-type]
        assert answer.headers["x-millpond-truncated-texts"] == "1"
    answer = post(app, "/embed_all", inputs=["mill", long], truncate=False)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "inputs"


def test_pooling_is_in_vllm_s_shape(app: FastAPI, engine: Engine) -> None:
    answer = post(app, "/pooling", input=TEXTS, task="token_embed", input_type="query")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", "late")
    assert body["id"] == answer.headers["x-request-id"]
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == 36
    assert [one["index"] for one in body["data"]] == [0, 1, 2]
    assert {one["object"] for one in body["data"]} == {"pooling"}
    expected = engine.embed_tokens(TEXTS, task="query")
    assert_vectors([one["data"] for one in body["data"]], expected)
    default = post(app, "/pooling", input=TEXTS, input_type="query").json()
    assert default["data"] == body["data"]


def test_pooling_in_base64(app: FastAPI, engine: Engine) -> None:
    body = {"input": TEXTS, "input_type": "document", "encoding_format": "base64"}
    answer = post(app, "/pooling", **body, dimensions=5, normalize=False).json()
    expected = engine.embed_tokens(TEXTS, task="document", dimensions=5, normalize=False)
    for one, rows in zip(answer["data"], expected, strict=True):
        found = np.frombuffer(base64.b64decode(one["data"]), dtype="<f4").reshape(-1, 5)
        np.testing.assert_array_equal(found, rows)


def test_pooling_of_a_model_that_embeds() -> None:
    with fake_app() as app:
        embedded = post(app, "/v1/embeddings", input=["a b", "c"]).json()["data"]
        for task in ({}, {"task": "embed"}):
            pooled = post(app, "/pooling", input=["a b", "c"], **task).json()["data"]
            assert [one["data"] for one in pooled] == [one["embedding"] for one in embedded]
        answer = post(app, "/pooling", input="a", task="token_embed")
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "unsupported_call"


@pytest.mark.parametrize("asked", ["input_type", "prompt_name"])
def test_a_prompt_is_not_for_token_ids(asked: str) -> None:
    with fake_app() as app:
        answer = post(app, "/pooling", input=[1, 2], **{asked: "query"})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == asked
        assert "in front of token ids" in error_of(answer)["message"]


@pytest.mark.parametrize(("labels", "task"), [(("no", "yes"), "classify"), (("LABEL_0",), "score")])
def test_pooling_of_a_model_that_scores(labels: tuple[str, ...], task: str) -> None:
    with fake_scoring_app(*labels) as app:
        for asked in ({}, {"task": task}):
            pooled = post(app, "/pooling", input=["a b", "c"], **asked).json()["data"]
            assert [len(one["data"]) for one in pooled] == [len(labels)] * 2
            raw = post(app, "/pooling", input=["a b", "c"], use_activation=False, **asked).json()
            assert raw["data"] != pooled


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/embed_all", {"inputs": []}, "inputs"),
        ("/embed_all", {"inputs": 3}, "inputs"),
        ("/embed_all", {"inputs": ["a", 3]}, "inputs[1]"),
        ("/embed_all", {}, "inputs"),
        ("/embed_all", {"inputs": "a", "other": 1}, "other"),
        ("/embed_all", {"inputs": "a", "prompt_name": "other"}, "prompt_name"),
        ("/embed_all", {"inputs": "a", "pool_factor": 0.5}, "pool_factor"),
        ("/embed_all", {"inputs": "a", "input_type": "title"}, "input_type"),
        ("/pooling", {"input": "a", "task": "token_classify"}, "task"),
        ("/pooling", {"input": "a", "task": "embed"}, "model"),
        ("/pooling", {"input": "a", "task": "score"}, "model"),
        ("/pooling", {"input": "a", "use_activation": False}, "use_activation"),
        ("/pooling", {"input": "a", "encoding_format": "bytes"}, "encoding_format"),
        ("/pooling", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/pooling", {"input": "a", "model": "other"}, "model"),
        ("/v1/embeddings", {"input": "a"}, "model"),
        ("/classify", {"input": "a"}, "model"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    path: str, body: dict[str, Any], param: str, app: FastAPI
) -> None:
    answer = post(app, path, **body)
    assert answer.status_code in (400, 404)
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize(
    "body", [{"dimensions": DIMENSION + 1}, {"pool_factor": 2, "input_type": "query"}]
)
def test_options_that_the_model_cannot_mean_are_refused(body: dict[str, Any], app: FastAPI) -> None:
    answer = post(app, "/pooling", input="a", **body)
    assert answer.status_code == 400
    assert next(iter(body)) in error_of(answer)["message"]


def test_fields_of_a_task_s_own_are_refused_with_others() -> None:
    with fake_app() as app:
        answer = post(app, "/pooling", input="a", pool_factor=2)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "pool_factor")
    with fake_scoring_app("LABEL_0") as app:
        answer = post(app, "/pooling", input="a", input_type="query")
        assert (answer.status_code, error_of(answer)["param"]) == (400, "input_type")


def test_a_multi_vector_model_reranks_and_scores(app: FastAPI, engine: Engine) -> None:
    documents = ["mill", "the stone", "grain"]
    ranked = np.array([(one.index, one.score) for one in engine.rank("mill", documents)])
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        results = post(app, path, query="mill", documents=documents).json()["results"]
        found = [(one["index"], one["relevance_score"]) for one in results]
        np.testing.assert_allclose(found, ranked, rtol=1e-6)
    for raw in ({}, {"raw_scores": True}, {"raw_scores": False}):
        found = post(app, "/rerank", query="mill", texts=documents, **raw).json()
        scores = [(one["index"], one["score"]) for one in found]
        np.testing.assert_allclose(scores, ranked, rtol=1e-6)
    body = post(app, "/score", queries="mill", documents=documents).json()
    scores = engine.score([("mill", document) for document in documents])
    assert [one["score"] for one in body["data"]] == pytest.approx(scores.tolist())


def test_a_key_is_needed_where_there_are_keys(engine: Engine) -> None:
    locked = create_app([ServedModel.of(engine)], AppSettings(api_keys=("secret",)))
    for path, field in (("/embed_all", "inputs"), ("/pooling", "input")):
        assert post(locked, path, **{field: "a"}).status_code == 401
        allowed = request(
            locked,
            "POST",
            path,
            json={field: "a"},
            headers={"authorization": "Bearer secret"},
        )
        assert allowed.status_code == 200


def test_a_reranker_is_preferred_to_a_model_that_can_rank_too(engine: Engine) -> None:
    with fake_scoring_app("LABEL_0") as other:
        reranker = next(iter(other.state.models))
        both = create_app([ServedModel.of(engine, ["late"]), reranker])
        answer = post(both, "/rerank", query="mill", documents=["stone"])
        assert answer.status_code == 400  # both of them are for that
        assert error_of(answer)["code"] == "no_model"
        named = post(both, "/rerank", query="mill", documents=["stone"], model="late")
        assert named.status_code == 200


def test_requests_are_counted(app: FastAPI) -> None:
    def requests(path: str) -> str:
        metrics = request(app, "GET", "/metrics").text
        return "\n".join(line for line in metrics.splitlines() if path in line)

    post(app, "/embed_all", inputs="a")
    assert "/embed_all" in requests("/embed_all")
    assert path_is_documented(app, "/embed_all")
    assert path_is_documented(app, "/pooling")


def path_is_documented(app: FastAPI, path: str) -> bool:
    return path in request(app, "GET", "/openapi.json").json()["paths"]


def test_the_model_s_card_says_what_it_is(app: FastAPI, tmp_path: Path) -> None:
    card = request(app, "GET", "/v1/models/late").json()
    assert (card["kind"], card["dimension"]) == ("multi_vector", DIMENSION)
