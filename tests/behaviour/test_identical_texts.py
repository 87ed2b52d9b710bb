"""Identical texts through the engine: computed once, and each call gets what it asked for."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from fakes import (
    PATIENCE_S,
    FakeRunner,
    held_engine,
    start_engine,
    vectors_for,
    wait_until_tokenized,
)
from faults import FAULTS, SCRIPT
from slot_memory import RememberingRunner

from millpond import Embeddings, Engine, TextFailed
from millpond.scheduler.batch import BatchShape

pytestmark = pytest.mark.usefixtures("quiet_log")  # the faults are meant


def submit_behind(engine: Engine, runner: FakeRunner, *calls: dict[str, Any]) -> list[Any]:
    """Calls that wait together, behind a text that is held."""
    first = engine.submit("behind this", priority="interactive")
    runner.wait_for_batches(1)
    futures = [first, *(engine.submit(**call) for call in calls)]
    wait_until_tokenized(engine, len(calls))
    return futures


def results(futures: list[Future[Embeddings]]) -> list[Embeddings]:
    return [future.result(PATIENCE_S) for future in futures]


SHAPES = [BatchShape(), BatchShape(8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_identical_texts_are_computed_once_and_counted(shape: BatchShape) -> None:
    runner = FakeRunner(shapes=(shape,))
    texts = ["a b", "c", "a b", "d", "c", "a b"]
    with held_engine(runner) as engine:
        calls = [{"texts": of, "priority": "interactive"} for of in (texts, ["d", "e"], ["a b"])]
        futures = submit_behind(engine, runner, *calls)
        runner.let()
        for result, call in zip(results(futures)[1:], calls, strict=True):
            assert np.array_equal(result.vectors, vectors_for(call["texts"]))
            assert not result.errors
        stats = engine.stats()
    assert sorted(runner.ran) == ["a b", "behind this", "c", "d", "e"]
    assert (stats.texts, stats.deduplicated_texts, stats.tokens) == (10, 5, 7)


def test_a_twin_gets_its_vector_in_its_own_form() -> None:
    runner = FakeRunner()
    forms: list[dict[str, Any]] = [
        {"dimensions": 4},
        {"output_dtype": "float16"},
        {"normalize": True},
        {"output_dtype": "binary"},
        {},
    ]
    with held_engine(runner) as engine:
        futures = submit_behind(
            engine,
            runner,
            *({"texts": ["a b"], "priority": "interactive", **form} for form in forms),
        )
        runner.let()
        found = [result.vectors for result in results(futures)[1:]]
        alone = [engine.embed(["a b"], **form) for form in forms]
    for one, other in zip(found, alone, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert runner.ran.count("a b") == 1 + len(forms)


def test_a_twin_that_is_too_long_for_its_form_fails_and_its_leader_does_not() -> None:
    runner = FakeRunner(scale=1e6)
    with held_engine(runner) as engine:
        futures = submit_behind(
            engine, runner, {"texts": ["a"]}, {"texts": ["b", "a"], "output_dtype": "float16"}
        )
        runner.let()
        _, leader, duplicate = results(futures)
        assert not leader.errors
        assert duplicate.errors[1].index == 1
        assert engine.stats().failed_texts == 2


@pytest.mark.parametrize("word", [*FAULTS])
@pytest.mark.parametrize("blocks", [None, 16])
def test_in_flight_texts_fail_as_their_leader_does_each_at_its_own_place(
    word: str, blocks: int | None
) -> None:
    bad = f"a {word} b"
    runner = FakeRunner(**SCRIPT) if blocks is None else RememberingRunner(blocks=blocks, **SCRIPT)
    with held_engine(runner) as engine:
        futures = submit_behind(
            engine, runner, {"texts": ["x", bad]}, {"texts": [bad, "y", "z", bad]}
        )
        runner.let()
        _, one, other = results(futures)
    assert [(row, type(error)) for row, error in sorted(one.errors.items())] == [(1, FAULTS[word])]
    assert {row: type(error) for row, error in other.errors.items()} == dict.fromkeys(
        (0, 3), FAULTS[word]
    )
    assert [error.index for _, error in sorted(other.errors.items())] == [0, 3]
    assert np.array_equal(other.vectors[1:3], vectors_for(["y", "z"]))
    assert np.array_equal(one.vectors[0], vectors_for(["x"])[0])


class CancelsWhileSplit(FakeRunner):
    """The model fails on a batch, and a call is cancelled before its halves are looked at."""

    cancelled: Future[Embeddings] | None = None

    def collect(self, handle: Any) -> Any:
        try:
            return super().collect(handle)
        except RuntimeError:
            if self.cancelled is not None:
                self.cancelled.cancel()
            raise


@pytest.mark.parametrize("shape", SHAPES)
def test_in_flight_texts_of_a_call_that_is_cancelled_while_its_batch_is_split_are_computed(
    shape: BatchShape,
) -> None:
    runner = CancelsWhileSplit(shapes=(shape,), raises_on=["poison"])
    with held_engine(runner) as engine:
        leading = {"texts": ["a", "b", "c"], "priority": "bulk"}
        following = {"texts": ["b", "c", "b"], "priority": "bulk"}
        futures = submit_behind(engine, runner, leading, {"texts": ["poison"]}, following)
        runner.cancelled = futures[1]
        runner.let()
        assert np.array_equal(
            futures[3].result(PATIENCE_S).vectors, vectors_for(following["texts"])
        )
        assert isinstance(futures[2].result(PATIENCE_S).errors[0], TextFailed)
    assert futures[1].cancelled()
    assert (
        repr(engine._instance.core.scheduler._in_flight_texts)
        == "InFlightTexts(in_flight=0, following=0)"
    )


def test_a_call_that_only_follows_is_told_what_its_texts_took() -> None:
    runner = FakeRunner()
    with held_engine(runner) as engine:
        futures = submit_behind(engine, runner, {"texts": ["a b"]}, {"texts": ["a b"]})
        runner.let()
        _, leading, following = (result.timings for result in results(futures))
        assert engine.stats().deduplicated_texts == 1
    assert following.forward_s == leading.forward_s > 0
    assert following.tokenize_s == pytest.approx(0.001)


def test_a_corpus_of_one_text_does_not_stall() -> None:
    runner = FakeRunner(max_batch_tokens=8, depth=2)
    with start_engine(runner, max_queue_tokens=100) as engine:
        result = engine.submit(["a b"] * 5000).result(PATIENCE_S)
        assert np.array_equal(result.vectors, np.repeat(vectors_for(["a b"]), 5000, axis=0))
        assert engine.stats().texts == 5000
        assert engine.stats().deduplicated_texts >= 5000 - len(runner.ran)
