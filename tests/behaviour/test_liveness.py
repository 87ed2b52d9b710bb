"""What no caller, callback, hook or finalizer can do to the others."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED, CancelledError, Future, as_completed, wait
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import numpy as np
import pytest
from fakes import PATIENCE_S, FakeRunner, held_engine, start_engine, vectors_for, words
from interrupts import interrupt

from millpond import BatchStats, DeadlineExceeded, Engine, EngineClosed, EngineError, EngineFailed
from millpond.errors import MillpondError
from millpond.scheduler import batch_builder as plan

BASE_EXCEPTIONS = [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit]


def raises(error: type[BaseException]) -> Callable[[object], None]:
    def callback(_: object) -> None:
        raise error

    return callback


# Callbacks and hooks.


@pytest.mark.parametrize("error", BASE_EXCEPTIONS)
def test_what_a_callback_raises_reaches_nobody(error: type[BaseException]) -> None:
    with held_engine(runner := FakeRunner(max_batch_tokens=2)) as engine:
        futures = [engine.submit([f"a{n} b", "c"]) for n in range(4)]
        heard: list[object] = []
        futures[1].add_done_callback(raises(error))
        futures[1].add_done_callback(heard.append)
        engine.add_stats_hook(raises(error))
        runner.let()
        for number, future in enumerate(futures):
            expected = vectors_for([f"a{number} b", "c"])
            np.testing.assert_array_equal(future.result(PATIENCE_S).vectors, expected)
        assert engine.embed("after").shape == vectors_for(["after"])[0].shape
        assert heard == [futures[1]], "the callback after it was called"
        assert engine.health == "ready"


@pytest.mark.parametrize("way", ["fails", "closes"])
def test_a_callback_that_raises_leaves_nobody_waiting_at_the_end(way: str) -> None:
    runner = FakeRunner(max_batch_tokens=2, fatal_on=["boom"])
    with held_engine(runner) as engine:
        first = "boom b" if way == "fails" else "a b"
        others = (engine.submit([f"a{n} b"], priority="bulk") for n in range(5))
        futures = [engine.submit([first, "c"], priority="bulk"), *others]
        runner.wait_for_batches(1)
        futures[2].add_done_callback(raises(SystemExit))
        closing = threading.Thread(target=engine.close, kwargs={"drain": False})
        if way == "closes":
            closing.start()
        else:
            runner.let()
        for future in futures[1:]:
            kind = EngineClosed if way == "closes" else EngineFailed
            assert isinstance(future.exception(PATIENCE_S), kind)
        runner.let()
    if way == "closes":
        closing.join(PATIENCE_S)
        assert not closing.is_alive()


WAITS: dict[str, Callable[[Engine], object]] = {
    "embed": lambda engine: engine.embed("another"),
    "embed_iter": lambda engine: list(engine.embed_iter(["another"])),
    "result": lambda engine: engine.submit("another").result(),
    "result in time": lambda engine: engine.submit("another").result(PATIENCE_S),
    "exception": lambda engine: engine.submit("another").exception(),
    "aembed": lambda engine: asyncio.run(engine.aembed("another")),
    "wait": lambda engine: wait([engine.submit("another")], return_when=ALL_COMPLETED),
    "as_completed": lambda engine: list(as_completed([engine.submit("another")])),
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("inside", ["hook", "callback"])
@pytest.mark.parametrize("way", WAITS)
def test_waiting_for_the_engine_on_its_own_thread_raises(
    way: str, inside: str, workers: int
) -> None:
    raised: list[BaseException] = []

    def waits(_: object) -> None:
        engine.remove_stats_hook(waits)
        try:
            WAITS[way](engine)
        except BaseException as error:
            raised.append(error)

    with held_engine(runner := FakeRunner(workers=workers)) as engine:
        if inside == "hook":
            engine.add_stats_hook(waits)
        future = engine.submit("one")
        runner.wait_for_batches(1)
        if inside == "callback":
            future.add_done_callback(waits)
        runner.let()
        future.result(PATIENCE_S)
        np.testing.assert_array_equal(engine.embed("two"), vectors_for(["two"])[0])
        while not raised:
            engine.embed("three")
    assert isinstance(raised[0], EngineError), raised
    assert "cannot wait" in str(raised[0])


def test_a_future_that_has_ended_may_be_asked_anywhere() -> None:
    asked: list[object] = []
    with start_engine(FakeRunner()) as engine:
        done = engine.submit("one")
        expected = done.result(PATIENCE_S)
        engine.add_stats_hook(lambda _: asked.append(done.result()))
        engine.add_stats_hook(lambda _: asked.append(*as_completed([done])))
        engine.embed(["two", "three"])
    assert asked == [expected, done]


def test_no_lock_is_held_while_a_hook_runs() -> None:
    in_a_hook, go_on = threading.Event(), threading.Event()

    def hook(_: BatchStats) -> None:
        engine.remove_stats_hook(hook)
        in_a_hook.set()
        assert go_on.wait(PATIENCE_S)

    with start_engine(FakeRunner(workers=2)) as engine:
        engine.add_stats_hook(hook)
        slow = engine.submit(["one", "two"])
        assert in_a_hook.wait(PATIENCE_S)
        engine.add_stats_hook(lambda _: None)
        assert len(engine.submit(["three", "four"]).result(PATIENCE_S)) == 2
        assert engine.stats().batches >= 1
        go_on.set()
        assert len(slow.result(PATIENCE_S)) == 2


# Finalizers.


@contextmanager
def collected_amid_planning(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Garbage is collected at every text that is planned, and at no other time."""
    take = plan.BatchBuilder.take

    def collecting(self: Any, request: Any, span: Any) -> bool:
        taken = take(self, request, span)
        gc.collect(0)
        return taken

    gc.collect()
    gc.disable()
    try:
        monkeypatch.setattr(plan.BatchBuilder, "take", collecting)
        yield
    finally:
        gc.enable()


class Cycle:
    """Only a collection ends it, and with it what it was given: a stream, or a finalizer."""

    def __init__(self, stream: object = None, final: Callable[[], object] = bool) -> None:
        self.me, self.stream, self.final = self, stream, final

    def __del__(self) -> None:
        self.final()


@pytest.mark.parametrize("what", ["stream", "cancel", "close", "stats", "submit", "embed"])
def test_a_finalizer_amid_planning_disturbs_nothing(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = FakeRunner(max_batch_tokens=8)
    engine = start_engine(runner)
    other = engine.__copy__()
    refused: list[str] = []

    def embeds() -> None:
        try:
            engine.embed(["x", "y"])
        except EngineError as error:
            refused.append(str(error))

    runner.hold()
    first = engine.submit(words(8))
    runner.wait_for_batches(1)
    futures = [engine.submit([f"{what} {n} b", f"c{n} d e"], priority="bulk") for n in range(6)]
    with collected_amid_planning(monkeypatch):
        finals: dict[str, Callable[[], object]] = {
            "cancel": lambda: [future.cancel() for future in futures[3:]],
            "close": other.close,
            "stats": engine.stats,
            "submit": lambda: engine.submit(["more", "of it"]),
            "embed": embeds,
        }
        if what == "stream":
            rows = engine.embed_iter((f"text {n}" for n in range(40)), chunk_size=4)
            reading = threading.Thread(target=lambda rows=rows: next(rows, None), daemon=True)
            reading.start()
            while engine.stats().waiting_bulk_tokens < 60:
                pass  # until its first slices are there
            Cycle(rows)
            runner.let(1)
            del rows
        else:
            Cycle(final=finals[what])
        runner.let()
        for future in [first, *futures[:3]]:
            assert len(future.result(PATIENCE_S)) in (1, 2)
    assert engine.health == "ready"
    if what == "embed":
        assert "cannot wait" in refused[0]
    other.close()
    engine.close()
    assert engine.health == "closed"
    assert engine.stats().waiting_bulk_tokens == 0, engine._instance


# Deadlines and bounds.


def test_a_deadline_passes_behind_a_pass_that_takes_every_worker() -> None:
    with held_engine(runner := FakeRunner(max_batch_tokens=4)) as engine:
        running = engine.submit("one")
        runner.wait_for_batches(1)
        late = engine.submit("late", timeout=0.01)
        with pytest.raises(DeadlineExceeded):
            late.result(PATIENCE_S)
        assert not running.done()
        runner.let()
        running.result(PATIENCE_S)
        assert runner.ran == ["one"]


def test_a_cancelled_call_is_told_to_those_who_wait_behind_a_long_pass() -> None:
    with held_engine(runner := FakeRunner(max_batch_tokens=4)) as engine:
        engine.submit("one")
        runner.wait_for_batches(1)
        futures = [engine.submit(f"q{n}") for n in range(3)]
        for future in futures:
            future.cancel()
        assert set(as_completed(futures, timeout=PATIENCE_S)) == set(futures)


def test_what_a_full_queue_refuses_is_not_tokenised() -> None:
    with held_engine(runner := FakeRunner(max_batch_tokens=4), max_queue_tokens=50) as engine:
        engine.submit("one")
        runner.wait_for_batches(1)
        accepted = 0
        for number in range(40):
            with suppress(EngineError):
                engine.submit(f"a query with number {number}", wait=False)
                accepted += 1
        assert 0 < accepted < 10
        runner.let()
        engine.close()
    assert runner.texts_tokenized == accepted + 1


def test_an_engine_fails_everybody_though_its_own_books_are_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with held_engine(runner := FakeRunner(max_batch_tokens=4, fatal_on=["fatal"])) as engine:
        texts = [["fatal", "x"], *([f"a{n}"] for n in range(4))]
        futures = [engine.submit(few, priority="bulk") for few in texts]
        runner.wait_for_batches(1)

        def broken(request: object) -> None:
            raise AssertionError("the books do not agree")

        monkeypatch.setattr(engine._instance.core.scheduler, "forget", broken)
        runner.let()
        for future in futures:
            assert isinstance(future.exception(PATIENCE_S), EngineFailed)


# A runner that keeps no promise.


class Wrong(FakeRunner):
    """Gives the vectors of other texts than it was asked for."""

    def collect(self, handle: Any) -> Any:
        vectors = super().collect(handle)
        shapes = {
            "fewer": lambda: vectors[:-1],
            "more": lambda: np.concatenate([vectors, vectors[:1]]),
            "narrower": lambda: vectors[:, :-1],
            "flat": lambda: vectors.ravel(),
            "none": lambda: None,
            "words": lambda: vectors.astype(str),
        }
        return shapes[self.how]() if self.how else vectors

    how: str = ""


@pytest.mark.parametrize("how", ["fewer", "more", "narrower", "flat", "none", "words"])
def test_a_runner_that_gives_other_rows_fails_the_texts_of_the_batch(how: str) -> None:
    runner = Wrong()
    with start_engine(runner) as engine:
        runner.how = how
        result = engine.submit(["a", "b", "c"]).result(PATIENCE_S)
        assert sorted(result.errors) == [0, 1, 2]
        assert "the runner gave" in str(result.errors[1])
        runner.how = ""
        np.testing.assert_array_equal(engine.embed(["a", "b"]), vectors_for(["a", "b"]))


# Everything at once.

THRESHOLD = (1, 10, 10)
HOOKS: list[Callable[[Engine], Callable[[Any], None]]] = [
    lambda engine: raises(SystemExit),
    lambda engine: raises(asyncio.CancelledError),
    lambda engine: lambda _: engine.submit("from a hook").result(),
    lambda engine: lambda _: engine.embed("from a hook"),
    lambda engine: lambda _: None,
]


EXPECTED = (MillpondError, CancelledError, asyncio.CancelledError, KeyboardInterrupt, SystemExit)


FORKS = threading.Lock()  # one at a time, and nothing is logged meanwhile


class Chaos:
    """Threads that do anything at all to one engine, by a seed."""

    def __init__(self, engine: Engine, seed: int, *, interrupts: float = 0.3) -> None:
        self.engine = engine
        self.futures: list[Future[Any]] = []
        self.seed = seed
        self.interrupts = interrupts
        self.wrong: list[BaseException] = []

    def run(self, operations: int, threads: int = 3) -> None:
        callers = [
            threading.Thread(target=self._call, args=(number, operations // threads))
            for number in range(threads)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(max(10 * PATIENCE_S, operations / 10))
            assert not caller.is_alive(), "a caller waits for ever"
        assert not self.wrong, self.wrong

    def _call(self, number: int, operations: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        for _ in range(operations):
            try:
                self._interrupted(chance, chance.choice(self.OPERATIONS))
            except EXPECTED:  # of a caller's own doing, callbacks of its cancellations included
                continue
            except BaseException as error:
                self.wrong.append(error)
                return

    def _interrupted(self, chance: random.Random, operation: Callable[..., None]) -> None:
        if chance.random() < self.interrupts:
            with interrupt(chance.randrange(1, 300), within=lambda file: "millpond" in file):
                operation(self, chance)
        else:
            operation(self, chance)

    def _texts(self, chance: random.Random) -> list[str]:
        kinds = ["", "", "", "", "poison", "nan", "huge", "refused"]
        few = range(chance.randrange(1, 7))
        return [f"t{chance.randrange(9)} {words(n % 5)} {chance.choice(kinds)}" for n in few]

    def submit(self, chance: random.Random) -> None:
        future = self.engine.submit(
            self._texts(chance),
            wait=chance.random() < 0.7,
            priority=chance.choice(["interactive", "bulk"]),
            timeout=chance.choice([None, None, 0.001, 10.0]),
        )
        self.futures.append(future)
        if chance.random() < 0.4:
            future.add_done_callback(chance.choice(HOOKS)(self.engine))

    def embed(self, chance: random.Random) -> None:
        texts = [f"t{chance.randrange(9)}" for _ in range(chance.randrange(1, 4))]
        one = chance.random() < 0.5
        found = self.engine.embed(texts[0] if one else texts)
        expected = vectors_for(texts)
        np.testing.assert_array_equal(found, expected[0] if one else expected)

    def aembed(self, chance: random.Random) -> None:
        async def call() -> None:
            task = asyncio.ensure_future(self.engine.aembed(self._texts(chance)))
            await asyncio.sleep(0)
            if chance.random() < 0.5:
                task.cancel()
            await task

        asyncio.run(call())

    def cancel(self, chance: random.Random) -> None:
        if self.futures:
            chance.choice(self.futures).cancel()

    def abandon(self, chance: random.Random) -> None:
        rows = self.engine.embed_iter((f"n{n}" for n in range(50)), chunk_size=3)
        next(rows)
        Cycle(rows)

    def finalize(self, chance: random.Random) -> None:
        future = chance.choice(self.futures) if self.futures else None
        Cycle(final=bool if future is None else future.cancel)

    def hook(self, chance: random.Random) -> None:
        act = chance.choice(HOOKS)(self.engine)
        acts = iter([act])  # once: what submits at every batch would never come to an end
        hook = lambda batch: next(acts, bool)(batch)  # noqa: E731
        self.engine.add_stats_hook(hook)
        with suppress(MillpondError):
            self.engine.embed("with a hook", timeout=10)
        self.engine.remove_stats_hook(hook)

    def close_one(self, chance: random.Random) -> None:
        """An engine of its own, closed while its calls run."""
        engine = start_engine(FakeRunner(workers=chance.choice([1, 2]), **FAULTS))
        try:
            futures = [engine.submit(self._texts(chance)) for _ in range(chance.randrange(4))]
            engine.close(drain=chance.random() < 0.5)
            assert all(future.done() for future in futures)
        finally:
            engine.close(drain=False)

    def fork(self, chance: random.Random) -> None:
        """The child uses its copy or closes it, and exits."""
        if chance.random() < 0.9:  # a process takes as long as many calls
            return
        use = chance.random() < 0.5
        with FORKS:
            try:
                logging.disable()  # a thread that the child has not may hold the lock of the stream
                child = os.fork()
                if child == 0:
                    sys.settrace(None)
                    self._live_in_child(use=use)
            finally:
                logging.disable(logging.NOTSET)
        while True:  # an interrupt leaves no child behind
            try:
                status = os.waitpid(child, 0)[1]
                break
            except KeyboardInterrupt:
                continue
        assert os.waitstatus_to_exitcode(status) == 0, "the child did not come to its end"

    def _live_in_child(self, *, use: bool) -> NoReturn:
        code = 1
        with suppress(BaseException):
            signal.alarm(int(PATIENCE_S))
            if use:
                assert self.engine.embed(["in the child"]).shape == (1, 8)
            self.engine.close()
            code = 0
        os._exit(code)

    def look(self, chance: random.Random) -> None:
        assert self.engine.stats().batches >= 0
        assert "Engine(" in repr(self.engine)
        repr(self.engine._instance)

    def share(self, chance: random.Random) -> None:
        copied = self.engine.__copy__()
        if chance.random() < 0.5:
            copied.close()

    OPERATIONS = (submit, submit, submit, embed, embed, aembed, cancel, abandon, finalize, hook,
                  look, share)  # fmt: skip


def is_through(engine: Engine) -> bool:
    """Whether no call is open and no text runs, one that was cancelled meanwhile included."""
    core = engine._instance.core
    with core.lock:  # both at once: a call may be cancelled while its text runs
        texts = repr(core.scheduler._in_flight_texts)
        return "pending_requests=0" in repr(core) and texts.startswith("InFlightTexts(in_flight=0,")


def wait_until_through(engine: Engine) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not is_through(engine):
        assert time.monotonic() < until_s, engine._instance
        engine.submit("to wake everybody").result(PATIENCE_S)


def at_rest(engine: Engine) -> None:
    """Wait until nothing waits or runs, and see that nothing is left."""
    gc.collect()  # finalizers may hand texts in, and would do so between two looks
    wait_until_through(engine)
    # A hook that an interrupt has left there is called now, and may hand texts in.
    assert len(engine.submit("the last").result(PATIENCE_S)) == 1
    wait_until_through(engine)
    core = engine._instance.core
    with core.lock:
        for queue in core.scheduler.queues.values():
            assert (queue.waiting_tokens, queue.ready_tokens) == (0, 0), core
        assert repr(core.scheduler._in_flight_texts) == "InFlightTexts(in_flight=0, following=0)"
        core.scheduler.check_idle()
    stats = engine.stats()
    assert (stats.waiting_interactive_tokens, stats.waiting_bulk_tokens) == (0, 0)


class ForkingChaos(Chaos):
    """Closes engines and forks in the middle of it too."""

    OPERATIONS = (*Chaos.OPERATIONS, Chaos.close_one, Chaos.fork)


FAULTS = {"raises_on": ["poison"], "not_finite_on": ["nan"], "memory_error_on": ["huge"],
          "refuses": ["refused"]}  # fmt: skip


def live_through(seed: int, operations: int, chaos_of: type[Chaos] = Chaos) -> None:
    chance = random.Random(seed)
    runner = FakeRunner(
        max_batch_tokens=chance.choice([8, 32]),
        depth=chance.choice([1, 2]),
        runs_on_callers=chance.random() < 0.5,
        workers=chance.choice([1, 2]),
        query_workers=chance.choice([0, 1]),
        **FAULTS,
    )
    engine = start_engine(runner, max_queue_tokens=chance.choice([30, 100_000]))
    chaos = chaos_of(engine, seed)
    gc.collect()
    gc.freeze()  # what is there already takes long to look through
    before, unraisable = gc.get_threshold(), sys.unraisablehook
    gc.set_threshold(*THRESHOLD)
    # What is raised in a finalizer holds the frames that it came amid, and engines in them, for as
    # long as it is kept; pytest's hook would keep it until the test is over.
    sys.unraisablehook = lambda raised: None
    try:
        chaos.run(operations)
    finally:
        sys.unraisablehook = unraisable
        gc.set_threshold(*before)
        gc.unfreeze()
    for future in chaos.futures:
        with suppress(MillpondError, CancelledError):
            future.result(PATIENCE_S)
        assert future.done()
    at_rest(engine)
    assert engine.health == "ready", "one caller's doing is no one else's"
    gc.collect()
    engine.close()
    for thread in engine._instance.core._threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), engine._instance  # which counts the engines that hold it


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", range(4))
def test_whatever_callers_do_every_call_ends_and_nothing_is_left(seed: int) -> None:
    live_through(seed, operations=150)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", range(10, 13))
def test_whatever_callers_do_engines_may_close_and_processes_fork(seed: int) -> None:
    live_through(seed, operations=300, chaos_of=ForkingChaos)
