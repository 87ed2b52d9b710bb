"""A short call on its caller's own thread: when, and that it ends as any other does."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from fakes import FakeDeviceLost, FakeRunner, held_engine, start_engine, vectors_for, words
from families import ENCODER
from torch.utils._python_dispatch import TorchDispatchMode

from millpond import Engine, EngineError, EngineFailed, TextFailed
from millpond.scheduler.batch import Batch

PATIENCE_S = 30.0


def runner_of(**options: Any) -> FakeRunner:
    return FakeRunner(**{"workers": 2, "query_workers": 1, "runs_on_callers": True, **options})


def here() -> int:
    return threading.get_ident()


@pytest.mark.parametrize("options", [{}, {"task": "query"}], ids=["bulk", "queries"])
def test_a_short_list_runs_on_its_callers_thread(options: dict[str, Any]) -> None:
    texts = ["one", "two and three", "four"]
    with start_engine(runner := runner_of()) as engine:
        assert len(engine.embed(texts, **options)) == 3
        np.testing.assert_array_equal(engine.embed(texts), vectors_for(texts))
        assert runner.threads == {here()}
        assert (engine.stats().batches, engine.stats().texts) == (2, 6)


def test_a_text_that_fails_in_a_short_list_is_found_there() -> None:
    with start_engine(runner := runner_of(raises_on={"bad"})) as engine:
        with pytest.raises(TextFailed) as failure:
            engine.embed(["good", "bad", "fine"])
        assert failure.value.index == 1
        assert runner.threads == {here()}
        assert engine.stats().failed_texts == 1


def test_a_lone_query_runs_on_its_callers_thread() -> None:
    with start_engine(runner := runner_of()) as engine:
        np.testing.assert_array_equal(engine.embed("which one"), vectors_for(["which one"])[0])
        assert runner.threads == {here()}
        assert engine.stats().batches == 1


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        ([words(40), words(41)], {}),  # that are divided among the workers
        (["one", "two", "one"], {}),  # one of them is computed once
        (["one", "two"], {"timeout": PATIENCE_S}),
        ("one", {"timeout": PATIENCE_S}),
    ],
)
def test_other_calls_are_left_to_the_workers(texts: Any, options: dict[str, Any]) -> None:
    with start_engine(runner := runner_of()) as engine:
        engine.embed(texts, **options)
        assert here() not in runner.threads


def test_where_the_runner_wants_its_own_threads_it_has_them() -> None:
    with start_engine(runner := runner_of(runs_on_callers=False)) as engine:
        engine.embed("which one")
        assert here() not in runner.threads


def test_a_call_that_is_not_waited_for_runs_on_a_worker() -> None:
    with start_engine(runner := runner_of()) as engine:
        engine.submit("one").result(PATIENCE_S)
        asyncio.run(engine.aembed("two"))
        assert here() not in runner.threads


def test_a_query_beside_other_work_is_left_to_the_workers() -> None:
    with held_engine(runner := runner_of()) as engine:
        ingestion = engine.submit([words(60)] * 2)
        runner.wait_for_batches(1)
        found: list[Any] = []
        caller = threading.Thread(target=lambda: found.append(engine.embed("which one")))
        caller.start()
        runner.wait_for_batches(2)
        runner.let()
        caller.join(PATIENCE_S)
        assert caller.ident not in runner.threads
        np.testing.assert_array_equal(found[0], vectors_for(["which one"])[0])
        assert len(ingestion.result(PATIENCE_S)) == 2


def test_who_comes_meanwhile_is_served_by_the_workers() -> None:
    with held_engine(runner := runner_of(workers=1, query_workers=0)) as engine:
        caller = threading.Thread(target=engine.embed, args=("one",))
        caller.start()
        runner.wait_for_batches(1)
        later = engine.submit("two")  # the only place is taken: it waits for the caller
        runner.let()
        np.testing.assert_array_equal(later.result(PATIENCE_S).vectors, vectors_for(["two"]))
        caller.join(PATIENCE_S)
        assert runner.ran == ["one", "two"]


def test_a_text_that_fails_gives_its_error_and_the_next_one_its_vector() -> None:
    with start_engine(runner_of(raises_on={"bad"})) as engine:
        with pytest.raises(TextFailed):
            engine.embed("bad")
        np.testing.assert_array_equal(engine.embed("good"), vectors_for(["good"])[0])


def test_what_no_batch_survives_fails_the_engine() -> None:
    with start_engine(runner_of(fatal_on={"bad"})) as engine:
        with pytest.raises(EngineFailed) as failure:
            engine.embed("bad")
        assert isinstance(failure.value.__cause__, FakeDeviceLost)
        assert engine.health == "failed"


def test_a_hook_that_would_wait_for_the_engine_on_the_callers_thread_is_refused() -> None:
    refused = []

    def ask_again(_: object) -> None:
        with pytest.raises(EngineError, match="cannot wait") as refusal:
            engine.embed("another")
        refused.append(refusal.value)

    with start_engine(runner_of()) as engine:
        engine.add_stats_hook(ask_again)
        engine.embed("one")
        engine.remove_stats_hook(ask_again)
        assert len(refused) == 1
        np.testing.assert_array_equal(engine.embed("two"), vectors_for(["two"])[0])


class Interrupted(FakeRunner):
    """Its caller presses Ctrl-C in the middle of the first pass, while others ask the same."""

    def launch(self, batch: Batch) -> Any:
        if not self.batches:
            self.batches.append(None)  # type: ignore[arg-type]
            self.beside = self.engine.submit("one")
            raise KeyboardInterrupt
        return super().launch(batch)

    engine: Engine


def test_an_interrupted_caller_takes_nobody_along() -> None:
    runner = Interrupted(workers=2, query_workers=1, runs_on_callers=True)
    with start_engine(runner) as engine:
        runner.engine = engine
        with pytest.raises(KeyboardInterrupt):
            engine.embed("one")
        beside = runner.beside.result(PATIENCE_S)
        np.testing.assert_array_equal(beside.vectors, vectors_for(["one"]))
        np.testing.assert_array_equal(engine.embed("two"), vectors_for(["two"])[0])
    assert engine.health == "closed"


class Seen(TorchDispatchMode):
    """Counts the operators that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def test_what_a_caller_set_for_its_own_work_does_not_change_its_vectors(tmp_path: Path) -> None:
    folder = checkpoints.save_transformer(tmp_path / "bert", config=ENCODER)
    with Engine(folder, device="cpu", dtype="float32") as engine:
        expected = engine.embed("which one")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert np.array_equal(engine.embed("which one"), expected)
        with torch.device("meta"):
            assert np.array_equal(engine.embed("which one"), expected)
        with Seen() as seen:
            assert np.array_equal(engine.embed("which one"), expected)
        assert seen.operators == 0
