"""What `/rerank` and `/score` take, give and refuse."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from fakes import PATIENCE_S, FakeRunner, scorer, scores_for, start_engine
from fastapi import FastAPI
from serving import NAME, Call, embed, error_of, fake_app, fake_scoring_app, request

from millpond.server.app import create_app
from millpond.server.calls.encoding import SLICE_BYTES
from millpond.server.models import ServedModel
from millpond.server.settings import AppSettings

DOCUMENTS = ["a b", "c", "d e f", "", "g"]
RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")


@pytest.fixture
def app() -> Any:
    with fake_scoring_app() as app:
        yield app


def post(app: FastAPI, path: str, /, **body: Any) -> Any:
    return request(app, "POST", path, json=body)


def expected(query: str, documents: list[str]) -> np.ndarray:
    """As the fake model gives them: logits."""
    return scores_for([(query, document) for document in documents])[:, 0]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def by_index(results: list[dict[str, Any]], name: str) -> np.ndarray:
    places = {one["index"]: one[name] for one in results}
    return np.array([places[index] for index in range(len(places))], dtype=np.float32)


# Cohere's and Jina's shape.


@pytest.mark.parametrize("path", RERANK)
def test_documents_are_ordered_by_their_score(app: FastAPI, path: str) -> None:
    answer = post(app, path, model=NAME, query="q", documents=DOCUMENTS)
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["id", "object", "model", "results", "usage", "meta"]
    assert (body["id"], body["object"]) == (answer.headers["x-request-id"], "rerank")
    assert body["model"] == NAME
    tokens = sum(len(f"q | {document}".split()) for document in DOCUMENTS)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert body["meta"]["tokens"] == {"input_tokens": tokens}
    assert {tuple(one) for one in body["results"]} == {("index", "relevance_score")}
    scores = expected("q", DOCUMENTS)
    np.testing.assert_array_equal(by_index(body["results"], "relevance_score"), scores)
    assert [one["index"] for one in body["results"]] == np.argsort(-scores).tolist()


def test_scores_are_the_shortest_floats_that_are_exact(app: FastAPI) -> None:
    answer = post(app, "/rerank", query="q", documents=["a b"])
    (score,) = expected("q", ["a b"])
    assert f'"relevance_score":{score!s}' in answer.text


def test_the_best_alone_and_their_texts(app: FastAPI) -> None:
    documents = [{"text": "a b"}, "é \n 水", {"text": '"'}]
    answer = post(
        app, "/rerank", query="q", documents=documents, top_n=2, return_documents=True
    ).json()
    texts = ["a b", "é \n 水", '"']
    best = np.argsort(-expected("q", texts))[:2].tolist()
    assert [one["index"] for one in answer["results"]] == best
    assert [one["document"] for one in answer["results"]] == [{"text": texts[i]} for i in best]
    more = post(app, "/rerank", query="q", documents=documents, top_n=10).json()
    assert len(more["results"]) == 3


def test_large_texts_come_back_whole(app: FastAPI) -> None:
    documents = ["é 水 " * (SLICE_BYTES // 3), "b", '"\\' * SLICE_BYTES, ""]
    answer = post(app, "/rerank", query="q", documents=documents, return_documents=True)
    assert len(answer.content) == int(answer.headers["content-length"])
    results = answer.json()["results"]
    assert sorted(one["index"] for one in results) == [0, 1, 2, 3]
    assert all(one["document"]["text"] == documents[one["index"]] for one in results)


@pytest.mark.parametrize(
    ("raw", "scores"),
    [(None, expected), (True, expected), (False, lambda *of: sigmoid(expected(*of)))],
)
def test_raw_scores_are_logits_and_others_probabilities(
    app: FastAPI, raw: bool | None, scores: Any
) -> None:
    results = post(app, "/rerank", query="q", documents=DOCUMENTS, raw_scores=raw).json()["results"]
    found = by_index(results, "relevance_score")
    np.testing.assert_allclose(found, scores("q", DOCUMENTS), rtol=1e-6)


def test_of_each_document_only_the_first_tokens_are_read() -> None:
    runner = FakeRunner()
    with fake_scoring_app(runner=runner) as app:
        documents = ["a b c d e", "a", "b c", "d " * 100]
        body = {"query": "q r", "documents": documents}
        answer = post(app, "/rerank", **body, max_tokens_per_doc=2, return_documents=True).json()
    assert sorted(runner.ran) == ["q r | a", "q r | a b", "q r | b c", "q r | d d"]
    assert all(one["document"]["text"] == documents[one["index"]] for one in answer["results"])


def test_more_tokens_than_the_model_reads_are_not_counted() -> None:
    runner = FakeRunner(max_length=8)
    with fake_scoring_app(runner=runner) as app:
        tokenized = runner.texts_tokenized
        body = {"query": "q", "documents": ["a " * 100]}
        answer = post(app, "/rerank", **body, max_tokens_per_doc=4096)
        assert answer.headers["x-millpond-truncated-texts"] == "1"
        assert runner.texts_tokenized == tokenized + 1


# Text Embeddings Inference's shape.


def test_texts_give_a_list_of_probabilities(app: FastAPI) -> None:
    body = {"query": "q", "texts": DOCUMENTS}
    found = post(app, "/rerank", **body).json()
    scores = sigmoid(expected("q", DOCUMENTS))
    np.testing.assert_allclose(by_index(found, "score"), scores, rtol=1e-6)
    assert [one["index"] for one in found] == np.argsort(-scores).tolist()
    assert {tuple(one) for one in found} == {("index", "score")}
    found = post(app, "/rerank", **body, raw_scores=True, return_text=True).json()
    np.testing.assert_array_equal(by_index(found, "score"), expected("q", DOCUMENTS))
    assert all(one["text"] == DOCUMENTS[one["index"]] for one in found)
    assert (
        post(app, "/rerank", **body, raw_scores=True, return_text=True, top_n=2).json() == found[:2]
    )


def test_truncation_is_named_as_there() -> None:
    runner = FakeRunner(max_length=4)
    with fake_scoring_app(runner=runner) as app:
        body = {"query": "q", "texts": ["a b c d"]}
        for options in ({}, {"truncate": None}, {"truncate": True, "truncation_direction": "Left"}):
            answer = post(app, "/rerank", **body, **options)
            assert answer.headers["x-millpond-truncated-texts"] == "1"
        refused = post(app, "/rerank", **body, truncate=False, truncation_direction="Right")
    assert refused.status_code == 400
    assert error_of(refused)["code"] == "context_length_exceeded"
    assert error_of(refused)["param"] == "texts"


# vLLM's `/score`.


@pytest.mark.parametrize(
    ("queries", "documents", "pairs"),
    [
        ("q", "a", [("q", "a")]),
        ("q", ["a", "b c"], [("q", "a"), ("q", "b c")]),
        (["q"], ["a", "b c"], [("q", "a"), ("q", "b c")]),
        (["q", "r"], ["a", "b c"], [("q", "a"), ("r", "b c")]),
    ],
)
@pytest.mark.parametrize("names", [("queries", "documents"), ("text_1", "text_2")])
def test_pairs_are_scored_in_their_order(
    app: FastAPI, names: tuple[str, str], queries: Any, documents: Any, pairs: list[Any]
) -> None:
    answer = post(app, "/score", **dict(zip(names, (queries, documents), strict=True))).json()
    assert answer["object"] == "list"
    assert [one["index"] for one in answer["data"]] == list(range(len(pairs)))
    assert {one["object"] for one in answer["data"]} == {"score"}
    found = np.array([one["score"] for one in answer["data"]], dtype=np.float32)
    np.testing.assert_array_equal(found, scores_for(pairs)[:, 0])
    assert answer["usage"]["total_tokens"] == sum(len(f"{q} | {d}".split()) for q, d in pairs)


def test_lists_of_different_lengths_make_no_pairs(app: FastAPI) -> None:
    error = error_of(post(app, "/score", queries=["q", "r"], documents=["a", "b", "c"]))
    assert error["param"] == "queries"
    assert "2" in error["message"]
    assert "3 documents" in error["message"]


# Refusals.


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"query": "q"}, "documents", "required"),
        ({"query": "q", "documents": []}, "documents", "at least 1"),
        ({"query": "q", "texts": []}, "texts", "at least 1"),
        ({"query": "q", "documents": "a"}, "documents", "list"),
        ({"query": ["q"], "documents": ["a"]}, "query", "string"),
        ({"query": "q", "documents": ["a", {"image": "b"}]}, "documents[1]", "holds a text"),
        ({"query": "q", "documents": ["a", {"text": 1}]}, "documents[1]", "string"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n", "greater"),
        ({"query": "q", "documents": ["a"], "topn": 1}, "topn", "did you mean top_n"),
        ({"query": "q", "texts": ["a"], "topn": 1}, "topn", "did you mean top_n"),
        ({"query": "q", "documents": ["a"], "max_chunks_per_doc": 9}, "max_chunks_per_doc", "1"),
        ({"query": "q", "documents": ["a"], "prompt_name": "no"}, "prompt_name", "no"),
    ],
)
def test_an_invalid_body_is_a_400(app: FastAPI, body: Any, param: str, part: str) -> None:
    answer = post(app, "/rerank", **body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert part in error_of(answer)["message"]


def test_other_servers_fields_that_change_nothing_are_taken(app: FastAPI) -> None:
    fields = {"user": "me", "rank_fields": ["text"], "truncation": True, "priority": 0}
    assert post(app, "/v1/rerank", query="q", documents=["a"], **fields).status_code == 200


def test_too_many_documents_are_a_413(app: FastAPI) -> None:
    for field in ("documents", "texts"):
        answer = post(app, "/rerank", query="q", **{field: ["a"] * 2049})
        assert answer.status_code == 413
        assert f"at most 2048 {field} a request" in error_of(answer)["message"]


def test_a_document_that_fails_is_a_422_that_names_it() -> None:
    with fake_scoring_app(runner=FakeRunner(not_finite_on=["bad"])) as app:
        answer = post(app, "/rerank", query="q", documents=["a", "b bad"])
        assert answer.status_code == 422
        assert error_of(answer)["param"] == "documents"
        assert "text 1" in error_of(answer)["message"]
        several = post(app, "/rerank", query="bad", documents=["a", "b"])
        assert error_of(several)["message"].startswith("2 of the texts")


def test_a_key_is_needed_where_there_is_one() -> None:
    with fake_scoring_app(settings=AppSettings(api_keys=("key",))) as app:
        for path in (*RERANK, "/score", "/classify", "/predict"):
            assert post(app, path, query="q", documents=["a"]).status_code == 401
        headers = {"authorization": "Bearer key"}
        body = {"query": "q", "documents": ["a"]}
        assert request(app, "POST", "/rerank", json=body, headers=headers).status_code == 200


def test_a_full_queue_is_a_429() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    runner.hold()
    with fake_scoring_app(runner=runner, max_queue_tokens=8) as app:
        (model,) = app.state.models
        model.engine.submit_score([("q", "a b")], priority="bulk")
        runner.wait_for_batches(1)
        model.engine.submit_score([("q", "c d"), ("q", "e f")], priority="bulk")
        answer = post(app, "/rerank", query="q", documents=["a b", "c d"], priority="bulk")
        assert answer.status_code == 429
        assert error_of(answer)["code"] == "queue_full"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        metrics = request(app, "GET", "/metrics").text
        assert f'millpond_rejected_requests_total{{model="{NAME}"}} 1.0' in metrics


def test_what_takes_too_long_is_a_504_and_is_taken_out_of_the_queue() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    runner.hold()
    settings = AppSettings(request_timeout_s=0.05)
    with fake_scoring_app(runner=runner, settings=settings) as app:
        (model,) = app.state.models
        first = model.engine.submit_score([("q", "first")])
        runner.wait_for_batches(1)
        assert post(app, "/rerank", query="q", documents=["late"]).status_code == 504
        runner.let()
        first.result(PATIENCE_S)
        model.engine.score([("q", "last")])
        assert runner.ran == ["q | first", "q | last"]


def test_who_hangs_up_is_taken_out_of_the_queue() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with fake_scoring_app(runner=runner) as app:
        runner.hold()

        async def call() -> int | None:
            call = Call(app, "/rerank")
            call.send(b'{"query": "q", "documents": ["a", "b", "c", "d"]}', last=True)
            await asyncio.to_thread(runner.wait_until_held)
            call.hang_up()
            return await asyncio.wait_for(call.over, PATIENCE_S)

        assert asyncio.run(call()) is None
        runner.let()
        post(app, "/rerank", query="q", documents=["e"])
        assert "q | d" not in runner.ran
        assert 'route="/rerank",status="499"' in request(app, "GET", "/metrics").text


@pytest.mark.parametrize(
    ("documents", "options", "priority"),
    [
        (["a"] * 128, {}, "interactive"),
        (["a"] * 129, {}, "bulk"),
        (["a " * 40_000], {}, "bulk"),
        (["a"], {"priority": "bulk"}, "bulk"),
        (["a"] * 129, {"priority": "interactive"}, "interactive"),
    ],
)
def test_few_pairs_are_interactive(
    documents: list[str], options: dict[str, str], priority: str
) -> None:
    runner = FakeRunner()
    with fake_scoring_app(runner=runner) as app:
        assert post(app, "/rerank", query="q", documents=documents, **options).status_code == 200
    assert {one for batch in runner.batches for one in batch.priorities} == {priority}


# Models of several kinds.


@pytest.fixture
def mixed() -> Any:
    """An embedder, a reranker and a classifier behind one server."""
    engines = {
        "embedder": start_engine(FakeRunner()),
        "reranker": scorer(FakeRunner()),
        "classifier": scorer(FakeRunner(), "no", "yes"),
    }
    yield create_app([ServedModel.of(engine, [name]) for name, engine in engines.items()])
    for engine in engines.values():
        engine.close(drain=False)


def test_without_a_name_a_request_goes_to_the_only_model_of_its_kind(mixed: FastAPI) -> None:
    assert embed(mixed, {"input": "a"}).json()["model"] == "embedder"
    assert post(mixed, "/rerank", query="q", documents=["a"]).json()["model"] == "reranker"
    error = error_of(post(mixed, "/classify", input="a"))
    assert error["code"] == "no_model"
    assert "'reranker' or 'classifier'" in error["message"]
    assert "embedder" not in error["message"]


def test_the_list_of_models_says_their_kinds(mixed: FastAPI) -> None:
    cards = request(mixed, "GET", "/v1/models").json()["data"]
    kinds = {card["id"]: (card["kind"], card["labels"]) for card in cards}
    assert kinds == {
        "embedder": ("embed", []),
        "reranker": ("score", ["relevance"]),
        "classifier": ("classify", ["no", "yes"]),
    }


@pytest.mark.parametrize(
    ("path", "body", "model", "route"),
    [
        ("/v1/embeddings", {"input": "a"}, "reranker", "/rerank"),
        ("/v1/embeddings", {"input": "a"}, "classifier", "/classify"),
        ("/rerank", {"query": "q", "documents": ["a"]}, "embedder", "/v1/embeddings"),
        ("/rerank", {"query": "q", "texts": ["a"]}, "classifier", "/classify"),
        ("/score", {"queries": "q", "documents": "a"}, "embedder", "/v1/embeddings"),
        ("/classify", {"input": "a"}, "embedder", "/v1/embeddings"),
        ("/predict", {"inputs": "a"}, "embedder", "/v1/embeddings"),
    ],
)
def test_a_route_that_a_model_cannot_answer_names_the_one_that_can(
    mixed: FastAPI, path: str, body: dict[str, Any], model: str, route: str
) -> None:
    answer = post(mixed, path, **body, model=model)
    assert answer.status_code == 400
    if path == "/predict":  # which has another format for errors
        assert route in answer.json()["error"]
        return
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("unsupported_call", "model")
    assert route in error["message"]


def test_an_only_model_of_another_kind_says_what_it_gives(app: FastAPI) -> None:
    assert error_of(embed(app, {"input": "a"}))["code"] == "unsupported_call"
    with fake_app() as embedder:
        error = error_of(post(embedder, "/rerank", query="q", documents=["a"]))
    assert error["message"] == f"{NAME} gives embeddings; send it to /v1/embeddings"
