"""What the rerankers take, give and refuse, on an engine whose runner is a fake."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRunner, scorer, scores_for, start_engine
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ValidationError

from langchain_millpond import MillpondCrossEncoder, MillpondEmbeddings, MillpondRerank
from millpond import (
    Engine,
    EngineClosed,
    InvalidOption,
    InvalidText,
    ModelNotFound,
    NonFiniteVector,
    TextTooLong,
    UnsupportedCall,
)

QUERY = "which"
TEXTS = ["one text", "another", "", "a third one", "the last"]
Compress = Callable[[MillpondRerank, Sequence[Document], str], Sequence[Document]]


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    engine = scorer(runner)
    yield engine
    runner.let()
    engine.close(drain=False)


def sync(reranker: MillpondRerank, documents: Sequence[Document], query: str) -> Any:
    return reranker.compress_documents(documents, query)


def awaited(reranker: MillpondRerank, documents: Sequence[Document], query: str) -> Any:
    return asyncio.run(reranker.acompress_documents(documents, query))


@pytest.fixture(params=[sync, awaited])
def compress(request: pytest.FixtureRequest) -> Compress:
    compress: Compress = request.param
    return compress


def documents() -> list[Document]:
    return [
        Document(text, metadata={"page": page, "of": ["book"]}, id=str(page))
        for page, text in enumerate(TEXTS)
    ]


def scores() -> np.ndarray:
    return scores_for([(QUERY, text) for text in TEXTS])[:, 0]


def test_the_best_come_first_with_their_scores(engine: Engine, compress: Compress) -> None:
    found = compress(MillpondRerank(engine=engine), documents(), QUERY)
    best = np.argsort(-scores())[:3]
    assert [one.page_content for one in found] == [TEXTS[index] for index in best]
    assert [one.id for one in found] == [str(index) for index in best]
    relevance = [one.metadata["relevance_score"] for one in found]
    assert {type(score) for score in relevance} == {float}
    np.testing.assert_array_equal(np.float32(relevance), scores()[best])


def test_the_documents_of_the_caller_are_left_as_they_are(
    engine: Engine, compress: Compress
) -> None:
    given = documents()
    found = compress(MillpondRerank(engine=engine, top_n=None), given, QUERY)
    for one in found:
        one.metadata["of"].append("changed")
    assert given == documents()
    assert len(found) == len(given)


def test_no_documents_are_no_call(runner: FakeRunner, engine: Engine, compress: Compress) -> None:
    assert compress(MillpondRerank(engine=engine), [], QUERY) == []
    assert runner.batches == []


def test_awaiting_uses_no_thread_of_the_executor(runner: FakeRunner, engine: Engine) -> None:
    reranker = MillpondRerank(engine=engine)
    before = set(threading.enumerate())

    async def call() -> None:
        await asyncio.gather(*(reranker.acompress_documents(documents(), q) for q in "abcd"))
        started = set(threading.enumerate()) - before
        assert not [one for one in started if one.name.startswith("asyncio")]

    asyncio.run(call())
    assert set(threading.enumerate()) == before


def test_a_cancelled_call_is_taken_out(runner: FakeRunner, engine: Engine) -> None:
    reranker = MillpondRerank(engine=engine)
    runner.hold()

    async def call() -> None:
        first = asyncio.ensure_future(reranker.acompress_documents(documents(), "first"))
        await asyncio.to_thread(runner.wait_until_held)
        second = asyncio.ensure_future(reranker.acompress_documents(documents(), "second"))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        runner.let()
        assert len(await first) == 3

    asyncio.run(call())
    engine.score((QUERY, "afterwards"))
    assert not [text for text in runner.ran if text.startswith("second")]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"top_n": 0}, InvalidOption),
        ({"activation": "softplus!"}, InvalidOption),
        ({"prompt_name": "unknown"}, InvalidOption),
        ({"truncate": "middle"}, ValidationError),
        ({"top": 3}, InvalidOption),
        ({"model": "another"}, InvalidOption),
    ],
)
def test_a_bad_option_is_refused_at_once(
    engine: Engine, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        MillpondRerank(engine=engine, **options)


def test_a_model_that_embeds_is_refused_with_what_to_call() -> None:
    engine = start_engine(FakeRunner())
    with engine, pytest.raises(UnsupportedCall, match="embeddings"):
        MillpondRerank(engine=engine)
    with engine, pytest.raises(UnsupportedCall, match="embeddings"):
        MillpondCrossEncoder(engine=engine)


def test_a_reranker_makes_no_embeddings(engine: Engine) -> None:
    with pytest.raises(UnsupportedCall, match="rank"):
        MillpondEmbeddings(engine=engine)


def test_a_model_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_MODEL", "an embedder")
    with pytest.raises(ValidationError, match="model"):
        MillpondRerank()
    with pytest.raises(ModelNotFound):
        MillpondRerank(model_name="no-such-reranker")


def test_options_reach_the_call() -> None:
    runner = FakeRunner(max_length=4)
    with scorer(runner) as engine:
        reranker = MillpondRerank(engine=engine, activation="sigmoid", prompt="find: ")
        (found,) = reranker.compress_documents([Document("a")], "q")
        logit = scores_for([("find: q", "a")])[0, 0]
        assert found.metadata["relevance_score"] == pytest.approx(1 / (1 + np.exp(-logit)))
        strict = reranker.model_copy(update={"truncate": "error", "prompt": None})
        with pytest.raises(TextTooLong) as refused:
            strict.compress_documents([Document("a"), Document("b c d e")], "q")
        assert refused.value.index == 1


def test_errors_of_the_engine_reach_the_caller(compress: Compress) -> None:
    with scorer(FakeRunner(not_finite_on=["bad"])) as engine:
        reranker = MillpondRerank(engine=engine)
        with pytest.raises(NonFiniteVector):
            compress(reranker, [Document("bad"), Document("good")], QUERY)
        with pytest.raises(InvalidText):
            compress(reranker, documents(), None)  # type: ignore[arg-type]
    with pytest.raises(EngineClosed):
        compress(reranker, documents(), QUERY)


def test_an_object_is_not_changed_but_copied(engine: Engine) -> None:
    reranker = MillpondRerank(engine=engine)
    with pytest.raises(ValidationError):
        reranker.top_n = 1
    assert len(reranker.model_copy(update={"top_n": 1}).compress_documents(documents(), "q")) == 1
    assert hash(reranker) == hash(reranker.model_copy())


@pytest.mark.parametrize("kind", [MillpondRerank, MillpondCrossEncoder])
def test_a_pickle_holds_the_options_and_finds_the_engine(kind: Any, tiny_reranker: Path) -> None:
    one = kind(model=tiny_reranker, dtype="float32", activation="none")
    other = pickle.loads(pickle.dumps(one))
    assert other.model_dump() == one.model_dump()
    before = one.engine.stats().texts
    for each in (one, other):
        each.engine.score(("a", "b"))
    assert one.engine.stats().texts == before + 2


def test_both_classes_share_an_engine(tiny_reranker: Path) -> None:
    reranker = MillpondRerank(model=tiny_reranker, top_n=None)
    encoder = MillpondCrossEncoder(model=tiny_reranker)
    before = Engine.shared(tiny_reranker).stats().texts
    found = reranker.compress_documents(documents(), QUERY)
    pairs = [(QUERY, one.page_content) for one in found]
    assert encoder.score(pairs) == [one.metadata["relevance_score"] for one in found]
    assert Engine.shared(tiny_reranker).stats().texts == before + 2 * len(TEXTS)


# The cross-encoder.


def test_a_cross_encoder_scores_pairs_in_their_order(engine: Engine) -> None:
    encoder = MillpondCrossEncoder(engine=engine)
    pairs = [(QUERY, text) for text in TEXTS]
    for found in (encoder.score(pairs), asyncio.run(encoder.ascore(pairs))):
        assert {type(score) for score in found} == {float}
        np.testing.assert_array_equal(np.float32(found), scores())
    assert encoder.score([]) == []


def test_of_two_labels_the_second_is_the_relevance() -> None:
    with scorer(FakeRunner(), "irrelevant", "relevant") as engine:
        encoder = MillpondCrossEncoder(engine=engine)
        expected = scores_for([(QUERY, "a")], 2)[:, 1]
        np.testing.assert_array_equal(np.float32(encoder.score([(QUERY, "a")])), expected)
        with pytest.raises(UnsupportedCall, match="rank"):
            MillpondRerank(engine=engine)


def test_a_classifier_is_no_cross_encoder() -> None:
    with (
        scorer(FakeRunner(), "a", "b", "c") as engine,
        pytest.raises(UnsupportedCall, match="3 classes"),
    ):
        MillpondCrossEncoder(engine=engine)


def test_langchains_own_reranker_takes_it(engine: Engine) -> None:
    encoder = MillpondCrossEncoder(engine=engine)
    found = CrossEncoderReranker(model=encoder, top_n=2).compress_documents(documents(), QUERY)
    assert [one.page_content for one in found] == [TEXTS[i] for i in np.argsort(-scores())[:2]]


# In a retriever.


class Everything(BaseRetriever):
    """Retrieves all documents."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return documents()


def test_a_retriever_gives_the_best_of_what_another_finds(engine: Engine) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=MillpondRerank(engine=engine, top_n=2), base_retriever=Everything()
    )
    best = [TEXTS[index] for index in np.argsort(-scores())[:2]]
    assert [one.page_content for one in retriever.invoke(QUERY)] == best
    assert [one.page_content for one in asyncio.run(retriever.ainvoke(QUERY))] == best
