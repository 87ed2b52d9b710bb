"""The calls for scores and classes: what they take, give and refuse, and the laws of all calls."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from fakes import PATIENCE_S, FakeRunner, scorer, scores_for, start_engine, vectors_for

from millpond import (
    DeadlineExceeded,
    Engine,
    InvalidOption,
    InvalidText,
    Label,
    NonFiniteVector,
    OutOfMemory,
    Pair,
    QueueFull,
    Ranked,
    TextFailed,
    TextsFailed,
    TextTooLong,
    UnsupportedCall,
)
from millpond.scheduler.batch import BatchShape

PAIRS = [("q one", "a b"), ("q one", "c"), ("q two", ""), ("", "d e f")]


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Any:
    with scorer(runner) as engine:
        yield engine


# What goes in and what comes out.


def test_pairs_give_a_score_each_in_their_order(engine: Engine) -> None:
    found = engine.score(PAIRS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, scores_for(PAIRS)[:, 0])
    assert engine.score([]).shape == (0,)


def test_several_labels_give_a_row_each(runner: FakeRunner) -> None:
    with scorer(runner, "no", "yes", "maybe") as engine:
        found = engine.score(PAIRS)
        np.testing.assert_array_equal(found, scores_for(PAIRS, 3))
        assert engine.score([]).shape == (0, 3)
        assert engine.score(PAIRS[0]).shape == (3,)
        assert engine.info().kind == "classify"
        assert engine.info().labels == ("no", "yes", "maybe")


@pytest.mark.parametrize(
    "pair", [("q one", "a b"), ["q one", "a b"], Pair("q one", "a b"), np.array(["q one", "a b"])]
)
def test_one_pair_gives_its_score(engine: Engine, pair: Any) -> None:
    found = engine.score(pair)
    assert found.shape == ()
    assert found == scores_for(PAIRS)[0, 0]


@pytest.mark.parametrize(
    "pairs", [tuple(PAIRS), [Pair(*pair) for pair in PAIRS], np.array(PAIRS), [*map(list, PAIRS)]]
)
def test_pairs_may_come_in_any_sequence(engine: Engine, pairs: Any) -> None:
    np.testing.assert_array_equal(engine.score(pairs), scores_for(PAIRS)[:, 0])


@pytest.mark.parametrize("pairs", ["a text", b"bytes", 3, None, iter(PAIRS)])
def test_what_holds_no_pairs_is_refused(engine: Engine, pairs: Any) -> None:
    with pytest.raises(InvalidText, match=r"a pair is \(query, document\)"):
        engine.score(pairs)


@pytest.mark.parametrize("bad", ["a text", ("a", "b", "c"), ("a", 3), ("a",), None])
def test_what_is_no_pair_is_named_by_its_place(engine: Engine, bad: Any) -> None:
    pairs = [PAIRS[0], bad, PAIRS[1]]
    with pytest.raises(InvalidText, match=r"text 1: expected a pair"):
        engine.score(pairs)
    result = engine.submit_score(pairs).result(PATIENCE_S)
    assert sorted(result.errors) == [1]
    assert np.isnan(result.scores[1])
    np.testing.assert_array_equal(result.scores[[0, 2]], scores_for(PAIRS)[:2, 0])
    assert [one.index for one in result.ranked()] in ([0, 2], [2, 0])


def test_a_ranking_is_best_first_and_ties_by_index(engine: Engine) -> None:
    documents = ["a", "b", "a", "c", "b", "a"]
    scores = scores_for([("q", document) for document in documents])[:, 0]
    ranked = engine.rank("q", documents)
    expected = sorted(range(6), key=lambda index: (-scores[index], index))
    assert ranked == [Ranked(index, float(scores[index])) for index in expected]
    assert engine.rank("q", documents, top_n=2) == ranked[:2]
    assert engine.rank("q", documents, top_n=99) == ranked
    assert engine.rank("q", iter(documents)) == ranked
    assert engine.rank("q", []) == []
    assert type(ranked[0].index) is int
    assert type(ranked[0].score) is float


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        (3, ["a"], "the query is int"),
        ("q", "a document", "put a single document into a list"),
        ("q", None, "expected a list of documents, not NoneType"),
        ("q", ["a", 3], "text 1: the document is int"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    engine: Engine, query: Any, documents: Any, message: str
) -> None:
    with pytest.raises(InvalidText, match=message):
        engine.rank(query, documents)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2"])
def test_a_number_of_results_is_a_whole_one_above_0(engine: Engine, value: Any) -> None:
    with pytest.raises(InvalidOption, match="top_n"):
        engine.rank("q", ["a"], top_n=value)
    with pytest.raises(InvalidOption, match="top_k"):
        engine.classify("a", top_k=value)


def test_classes_are_best_first_with_probabilities(runner: FakeRunner) -> None:
    with scorer(runner, "no", "yes", "maybe") as engine:
        texts = ["a b", "c", ""]
        logits = vectors_for(texts)[:, :3].astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        found = engine.classify(texts)
        for row, labels in zip(expected, found, strict=True):
            order = np.argsort(-row)
            assert [label.name for label in labels] == [("no", "yes", "maybe")[i] for i in order]
            np.testing.assert_allclose([label.score for label in labels], row[order], rtol=1e-6)
        assert engine.classify(texts, top_k=1) == [labels[:1] for labels in found]
        assert engine.classify("a b") == found[0]
        assert engine.classify([]) == []
        assert isinstance(found[0][0], Label)


def test_a_tuple_of_two_texts_is_a_pair_for_classes_and_a_list_is_texts(engine: Engine) -> None:
    def score(labels: list[Label]) -> float:
        (label,) = labels
        return label.score

    both = ("q", "d")
    texts, pair = vectors_for(both)[:, 0], scores_for([both])[0, 0]
    options = {"activation": "none"}
    assert score(engine.classify(both, **options)) == pair
    assert [score(each) for each in engine.classify([both], **options)] == [pair]
    assert [score(each) for each in engine.classify(["q", "d"], **options)] == texts.tolist()
    with pytest.raises(InvalidText, match="text 1: expected a string"):
        engine.classify(["q", both])
    with pytest.raises(InvalidText, match="text 1: expected a pair"):
        engine.classify([both, "q"])


def test_the_async_calls_give_the_same(engine: Engine) -> None:
    async def call() -> None:
        np.testing.assert_array_equal(await engine.ascore(PAIRS), engine.score(PAIRS))
        ranked = await engine.arank("q", ["a", "b", "c"], top_n=2)
        assert ranked == engine.rank("q", ["a", "b", "c"], top_n=2)
        assert await engine.aclassify(["a", "b"]) == engine.classify(["a", "b"])

    asyncio.run(call())


def test_a_future_gives_scores_and_what_they_took(engine: Engine) -> None:
    result = engine.submit_score(PAIRS).result(PATIENCE_S)
    assert len(result) == len(PAIRS)
    assert result.token_counts.tolist() == [5, 4, 3, 4]
    assert not result.truncated.any()
    assert not result.errors
    assert result.labels == ("relevance",)
    assert result.timings.total_s >= result.timings.forward_s >= 0
    assert repr(result) == "Scores(texts=4, labels=1, tokens=16, truncated=0, failed=0)"
    classes = engine.submit_classify(["a"]).result(PATIENCE_S).classes()
    assert classes == engine.classify(["a"])


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, "activation='swish': choose 'auto'"),
        ({"activation": 3}, "activation=3"),
        ({"truncate": "middle"}, "truncate='middle'"),
        ({"timeout": 0}, "timeout=0"),
        ({"priority": "urgent"}, "priority='urgent'"),
        ({"prompt": 3}, "prompt=3"),
        ({"prompt_name": "none such"}, "no prompt called 'none such'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    engine: Engine, options: Any, message: str
) -> None:
    for call in (
        lambda: engine.score(PAIRS, **options),
        lambda: engine.rank("q", ["a"], **options),
        lambda: engine.classify("a", **options),
        lambda: engine.submit_score(PAIRS, **options),
    ):
        with pytest.raises(InvalidOption, match=message):
            call()


def test_only_a_pair_can_lose_of_its_document_alone(engine: Engine) -> None:
    with pytest.raises(InvalidOption, match="truncate='document'"):
        engine.classify("a", truncate="document")


def test_a_prompt_stands_in_front_of_every_query(engine: Engine) -> None:
    expected = scores_for([("ask: " + query, document) for query, document in PAIRS])[:, 0]
    np.testing.assert_array_equal(engine.score(PAIRS, prompt="ask: "), expected)
    np.testing.assert_array_equal(engine.score(PAIRS, prompt_name="query"), expected)


def test_pairs_that_were_cut_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with scorer(FakeRunner(max_length=4)) as engine:
        result = engine.submit_score(PAIRS).result(PATIENCE_S)
        assert result.truncated.tolist() == [True, False, False, False]
        with pytest.raises(TextTooLong, match="text 0"):
            engine.score(PAIRS, truncate="error")
    assert "1 of 4 texts were longer" in caplog.text


@pytest.mark.parametrize("count", [1, 128, 129])
def test_a_call_of_up_to_128_pairs_is_interactive(runner: FakeRunner, count: int) -> None:
    with scorer(runner) as engine:
        documents = [f"d{number}" for number in range(count)]
        engine.rank("q", documents)
        engine.score([("p", document) for document in documents])
        expected = "interactive" if count <= 128 else "bulk"
        assert {name for batch in runner.batches for name in batch.priorities} == {expected}
        runner.batches.clear()
        engine.rank("q", documents, priority="bulk")
        assert {name for batch in runner.batches for name in batch.priorities} == {"bulk"}


# What the model is not for.


def test_a_model_for_scores_names_the_call_for_them(engine: Engine) -> None:
    for call in (
        lambda: engine.embed("a"),
        lambda: engine.submit(["a"]),
        lambda: asyncio.run(engine.aembed("a")),
        lambda: engine.embed_iter(["a"]),
    ):
        with pytest.raises(UnsupportedCall, match=r"gives a score, .*; call score or rank"):
            call()


def test_a_model_for_classes_names_the_call_for_them(runner: FakeRunner) -> None:
    with scorer(runner, "no", "yes") as engine:
        with pytest.raises(UnsupportedCall, match=r"gives classes, and embed .*; call classify"):
            engine.embed("a")
        for call in (lambda: engine.rank("q", ["a"]), lambda: asyncio.run(engine.arank("q", []))):
            with pytest.raises(UnsupportedCall, match=r"gives 2 classes \(no, yes\), and rank"):
                call()


def test_an_embedder_names_the_call_for_vectors() -> None:
    with start_engine(FakeRunner()) as engine:
        assert engine.info().kind == "embed"
        for call in (
            lambda: engine.score(PAIRS),
            lambda: engine.rank("q", []),
            lambda: engine.classify([]),
            lambda: engine.submit_score([]),
            lambda: engine.submit_classify([]),
            lambda: asyncio.run(engine.ascore(PAIRS)),
        ):
            with pytest.raises(UnsupportedCall, match=r"gives embeddings, .*; call embed"):
                call()


# The laws.


def test_identical_pairs_are_computed_once(runner: FakeRunner) -> None:
    with scorer(runner) as engine:
        pairs = [("q", "a"), ("q", "b"), ("q", "a"), ("q", "a")]
        np.testing.assert_array_equal(engine.score(pairs), scores_for(pairs)[:, 0])
        assert sorted(runner.ran) == ["q | a", "q | b"]
        assert engine.stats().deduplicated_texts == 2


def test_identical_pairs_of_two_calls_have_each_the_activation_of_theirs(
    runner: FakeRunner,
) -> None:
    with scorer(runner) as engine:
        runner.hold()
        engine.submit_score([("other", "pair")])
        runner.wait_until_held()
        first = engine.submit_score([("q", "a")])
        second = engine.submit_score([("q", "a")], activation="sigmoid")
        runner.let()
        logit = scores_for([("q", "a")])[0, 0]
        assert first.result(PATIENCE_S).scores[0] == logit
        np.testing.assert_allclose(
            second.result(PATIENCE_S).scores[0], 1 / (1 + np.exp(-logit)), rtol=1e-6
        )
        assert set(runner.ran) == {"other | pair", "q | a"}


def test_a_score_that_is_not_finite_is_the_error_of_its_pair() -> None:
    runner = FakeRunner(not_finite_on=["bad"])
    with scorer(runner) as engine:
        pairs = [("q", "a"), ("q", "bad"), ("q", "c")]
        with pytest.raises(NonFiniteVector) as caught:
            engine.score(pairs)
        assert caught.value.index == 1
        with pytest.raises(NonFiniteVector):
            engine.rank("q", ["a", "bad"])
        result = engine.submit_score(pairs).result(PATIENCE_S)
        np.testing.assert_array_equal(result.scores[[0, 2]], scores_for(pairs)[[0, 2], 0])
        assert {one.index for one in result.ranked()} == {0, 2}
        assert result.classes()[1] == []


def test_a_poisonous_pair_fails_alone() -> None:
    with scorer(FakeRunner(raises_on=["bad"])) as engine:
        pairs = [("q", f"d{number}") for number in range(9)]
        pairs[4] = ("q", "bad")
        result = engine.submit_score(pairs).result(PATIENCE_S)
        assert sorted(result.errors) == [4]
        good = [index for index in range(9) if index != 4]
        np.testing.assert_array_equal(result.scores[good], scores_for(pairs)[good, 0])
        with pytest.raises(TextFailed, match="text 4"):
            engine.score(pairs)
        with pytest.raises(TextsFailed):
            engine.rank("q", ["bad", "a", "bad 2"])


def test_out_of_memory_splits_the_batch() -> None:
    runner = FakeRunner(memory_tokens=8, memory_error_on=["huge"])
    with scorer(runner) as engine:
        pairs = [("q", f"a{number} b") for number in range(10)]
        np.testing.assert_array_equal(engine.score(pairs), scores_for(pairs)[:, 0])
        assert runner.memory_freed
        with pytest.raises(OutOfMemory):
            engine.score(("q", "huge"))


def test_padded_models_score_too() -> None:
    with scorer(FakeRunner(shapes=(BatchShape(pad_to=4),))) as engine:
        np.testing.assert_array_equal(engine.score(PAIRS), scores_for(PAIRS)[:, 0])


def test_a_cancelled_call_is_not_run(runner: FakeRunner) -> None:
    with scorer(runner) as engine:
        runner.hold()
        engine.submit_score([("first", "one")])
        runner.wait_until_held()
        waiting = engine.submit_score([("never", "run")])
        assert waiting.cancel()

        async def cancelled() -> None:
            task = asyncio.ensure_future(engine.arank("nor", ["this"]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        runner.let()
        engine.score(("last", "one"))
        assert runner.ran == ["first | one", "last | one"]


def test_a_passed_deadline_ends_the_call(runner: FakeRunner) -> None:
    with scorer(runner) as engine:
        runner.hold()
        with pytest.raises(DeadlineExceeded):
            engine.rank("q", ["a"], timeout=0.01)
        with pytest.raises(DeadlineExceeded):
            asyncio.run(engine.ascore([("q", "b")], timeout=0.01))
        runner.let()


def test_a_full_queue_refuses_those_who_will_not_wait() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with scorer(runner, max_queue_tokens=20) as engine:
        runner.hold()
        futures = [engine.submit_score([("q", "a b")])]
        runner.wait_until_held()
        futures += [engine.submit_score([("q", f"c d e f {i}")], wait=False) for i in range(2)]
        with pytest.raises(QueueFull):
            engine.submit_score([("q", "g h i j " * 8)], wait=False)
        runner.let()
        assert all(len(future.result(PATIENCE_S)) == 1 for future in futures)
