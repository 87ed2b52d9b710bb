"""The calls of an engine on a multi-vector model keep the laws that all calls keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXTS

import millpond
from millpond import (
    DeadlineExceeded,
    Engine,
    EngineClosed,
    InvalidDimensions,
    InvalidInput,
    InvalidOption,
    InvalidText,
    MillpondError,
    NonFiniteVector,
    TextFailed,
    TextTooLong,
    TokenVectors,
    UnknownPrompt,
    UnknownTask,
    UnsupportedCall,
)
from multi_vector import DIMENSION, save_multi_vector

DOCUMENTS = [text for text in dict.fromkeys(TEXTS) if text]
QUERIES = ["mill", "the stone grinds"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_multi_vector(tmp_path_factory.mktemp("multi_vector"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(str(folder), dtype="float32", device="cpu") as made:
        yield made


def test_a_text_gives_a_matrix_and_texts_give_token_vectors(engine: Engine) -> None:
    found = engine.embed_tokens(TEXTS)
    assert isinstance(found, TokenVectors)
    assert (len(found), found.dimension) == (len(TEXTS), DIMENSION)
    for text, vectors in zip(TEXTS, found, strict=True):
        assert np.array_equal(engine.embed_tokens(text), vectors)
        (ids,) = engine.tokenize([text])
        assert np.array_equal(engine.embed_tokens(ids), vectors)
    assert engine.embed_tokens([]).vectors.shape == (0, DIMENSION)


def test_every_way_of_calling_gives_the_same(engine: Engine) -> None:
    expected = engine.embed_tokens(DOCUMENTS, task="document")
    assert asyncio.run(engine.aembed_tokens(DOCUMENTS, task="document")) == expected
    result = engine.submit_tokens(DOCUMENTS, task="document").result()
    assert result.vectors == expected
    assert len(result) == len(DOCUMENTS)
    assert result.token_counts.tolist() >= expected.counts.tolist()
    chunks = list(engine.embed_tokens_iter(iter(DOCUMENTS), task="document", chunk_size=4))
    assert [len(chunk) for chunk in chunks] == [4, 4, len(DOCUMENTS) - 8]
    assert TokenVectors.of([each for chunk in chunks for each in chunk]) == expected


def test_fewer_dimensions_have_unit_length_again(engine: Engine) -> None:
    whole, cut = engine.embed_tokens(TEXTS), engine.embed_tokens(TEXTS, dimensions=7)
    expected = whole.vectors[:, :7] / np.linalg.norm(whole.vectors[:, :7], axis=1, keepdims=True)
    np.testing.assert_allclose(cut.vectors, expected, atol=1e-6)
    raw = engine.embed_tokens(TEXTS, dimensions=7, normalize=False)
    assert np.array_equal(raw.vectors, whole.vectors[:, :7])


def test_one_bad_text_fails_alone(engine: Engine) -> None:
    long = "stone " * 100
    result = engine.submit_tokens(["mill", long, 3, "stone"], truncate="error").result()  # type: ignore[list-item]
    assert {row: type(error) for row, error in result.errors.items()} == {
        1: TextTooLong,
        2: InvalidText,
    }
    assert result.vectors.counts.tolist()[1:3] == [0, 0]
    assert np.array_equal(result.vectors[3], engine.embed_tokens("stone"))
    stream = engine.embed_tokens_iter(["mill", long, "stone"], truncate="error")
    with pytest.raises(TextTooLong) as raised:
        next(stream)
    assert raised.value.index == 1
    assert next(stream) == engine.embed_tokens(["mill", "stone"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pool_factor": 0.5}, InvalidOption),
        ({"pool_factor": "2"}, InvalidOption),
        ({"pool_factor": True}, InvalidOption),
        ({"pool_factor": float("nan")}, InvalidOption),
        ({"pool_factor": 2, "task": "query"}, InvalidOption),
        ({"dimensions": 0}, InvalidDimensions),
        ({"dimensions": DIMENSION + 1}, InvalidDimensions),
        ({"normalize": "yes"}, InvalidOption),
        ({"task": "passage"}, UnknownTask),
        ({"prompt_name": "other"}, UnknownPrompt),
        ({"priority": "high"}, InvalidOption),
        ({"timeout": 0}, InvalidOption),
        ({"output_dtype": "float16"}, TypeError),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    options: dict[str, Any], error: type[Exception], engine: Engine
) -> None:
    with pytest.raises(error):
        engine.embed_tokens(["mill"], **options)
    with pytest.raises(error):
        engine.submit_tokens(["mill"], **options)
    with pytest.raises(error):
        next(engine.embed_tokens_iter(["mill"], **options))


@pytest.mark.parametrize("texts", [None, 3, b"mill", ["mill", 3], {"mill"}])
def test_what_holds_no_texts_is_refused(texts: Any, engine: Engine) -> None:
    with pytest.raises(InvalidInput):
        engine.embed_tokens(texts)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.embed("mill"),
        lambda engine: engine.submit(["mill"]),
        lambda engine: engine.embed_iter(["mill"]),
        lambda engine: engine.classify("mill"),
    ],
)
def test_calls_it_cannot_answer_name_those_it_can(
    call: Callable[[Engine], Any], engine: Engine
) -> None:
    with pytest.raises(UnsupportedCall, match="embed_tokens"):
        call(engine)


def test_other_models_give_no_token_vectors(bare_bert: Path) -> None:
    with Engine(str(bare_bert), device="cpu") as other:
        for call in (other.embed_tokens, other.submit_tokens, other.embed_tokens_iter):
            with pytest.raises(UnsupportedCall, match="call embed"):
                call(["mill"])


def test_vectors_that_are_not_finite_are_the_error_of_their_text(folder: Path) -> None:
    with Engine(str(folder), dtype="float32", device="cpu") as spoiled:
        table = spoiled._instance.runners[0].models[0].encoder.model.embeddings.word_embeddings
        (ids,) = spoiled.tokenize(["grain"], special_tokens=False)
        table.weight.data[ids[0]] = np.inf
        result = spoiled.submit_tokens(["mill", "grain", "stone"]).result()
        assert list(result.errors) == [1]
        assert isinstance(result.errors[1], NonFiniteVector)
        assert result.vectors.counts.tolist()[1] == 0
        ranked = spoiled.submit_score([("mill", "grain"), ("mill", "stone")]).result()
        assert list(ranked.errors) == [0]
        assert [each.index for each in ranked.ranked()] == [1]
        with pytest.raises(TextFailed):
            spoiled.rank("grain", ["stone"])


# Ranking.


def test_rank_is_maxsim_of_what_is_embedded_once_each(engine: Engine) -> None:
    vectors = engine.embed_tokens(DOCUMENTS, task="document")
    for query in QUERIES:
        expected = millpond.maxsim(engine.embed_tokens(query, task="query"), vectors)
        ranked = engine.rank(query, DOCUMENTS)
        assert [each.index for each in ranked] == np.argsort(-expected, kind="stable").tolist()
        assert [each.score for each in ranked] == expected[[r.index for r in ranked]].tolist()
        assert engine.rank(query, DOCUMENTS, top_n=2) == ranked[:2]
        assert asyncio.run(engine.arank(query, DOCUMENTS)) == ranked
    before = engine.stats().texts
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    scores = engine.score(pairs)
    assert engine.stats().texts - before == len(QUERIES) + len(DOCUMENTS)
    queries = engine.embed_tokens(QUERIES, task="query")
    assert np.array_equal(scores.reshape(2, -1), millpond.maxsim(queries, vectors))
    assert engine.score(pairs[1]) == scores[1]
    assert np.array_equal(asyncio.run(engine.ascore(pairs)), scores)


def test_a_mean_of_similarities_where_the_checkpoint_says_so(
    tmp_path: Path, engine: Engine
) -> None:
    mean = save_multi_vector(tmp_path, similarity_fn_name="meanmaxsim")
    with Engine(str(mean), dtype="float32", device="cpu") as other:
        found = other.score([("mill", "stone")])
    np.testing.assert_allclose(found * 12, engine.score([("mill", "stone")]), rtol=1e-6)


def test_a_score_may_go_through_an_activation(engine: Engine) -> None:
    pairs = [("mill", "stone"), ("mill", "grain")]
    raw = engine.score(pairs).astype(np.float64)
    found = engine.score(pairs, activation="sigmoid")
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-raw)), rtol=1e-6)
    assert np.array_equal(engine.score(pairs, activation="none"), engine.score(pairs))


def test_one_bad_pair_fails_alone(engine: Engine) -> None:
    long = "stone " * 100
    pairs: list[Any] = [("mill", "stone"), ("mill", 3), ("mill", long), ("mill", "grain")]
    result = engine.submit_score(pairs, truncate="document").result()
    assert list(result.errors) == [1]
    assert result.truncated.tolist() == [False, False, True, False]
    result = engine.submit_score(pairs, truncate="error").result()
    assert {row: type(error) for row, error in result.errors.items()} == {
        1: InvalidText,
        2: TextTooLong,
    }
    assert result.errors[2].index == 2
    with pytest.raises(TextTooLong) as raised:
        engine.score([("mill", "stone"), ("grain", long)], truncate="error")
    assert raised.value.index == 1
    assert engine.rank("mill", []) == []
    assert engine.score([]).shape == (0,)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"truncate": "middle"}, InvalidOption),
        ({"activation": "other"}, InvalidOption),
        ({"top_n": 0}, InvalidOption),
        ({"timeout": -1}, InvalidOption),
        ({"prompt_name": "other"}, UnknownPrompt),
        ({"timeout": 1e-9}, DeadlineExceeded),
    ],
)
def test_a_ranking_that_cannot_be_meant_is_refused(
    options: dict[str, Any], error: type[MillpondError], engine: Engine
) -> None:
    with pytest.raises(error):
        engine.rank("mill", ["stone"], **options)


def test_a_prompt_is_for_the_query(engine: Engine) -> None:
    vectors = engine.embed_tokens(["stone"], task="document")
    query = engine.embed_tokens("mill", task="query", prompt="grain ")
    found = engine.rank("mill", ["stone"], prompt="grain ")
    assert found[0].score == millpond.maxsim(query, vectors)[0]


def test_a_cancelled_score_is_taken_out_whole(engine: Engine) -> None:
    core = engine._instance.core
    with core.lock:  # nothing runs meanwhile
        future = engine.submit_score([("mill", "stone " * 30)] * 200, priority="bulk", wait=False)
        assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(timeout=10)
    assert engine.rank("mill", ["stone"])
    waiting = engine.stats()
    assert waiting.waiting_interactive_tokens == waiting.waiting_bulk_tokens == 0


def test_a_closed_engine_says_so(folder: Path) -> None:
    engine = Engine(str(folder), device="cpu")
    engine.close()
    for call in (lambda: engine.embed_tokens("mill"), lambda: engine.rank("mill", ["stone"])):
        with pytest.raises(EngineClosed):
            call()
