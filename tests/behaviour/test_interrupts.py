"""A caller that is interrupted anywhere: nobody else waits for ever, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from fakes import PATIENCE_S, FakeRunner, FakeTokenizer, fake_spec, start_engine, vectors_for
from interrupts import interrupt

from millpond import Engine, EngineConfig, EngineError
from millpond.engine.instance import ModelInstance

OURS = ("millpond", "concurrent/futures", "threading.py", "contextlib.py")


def is_ours(file: str) -> bool:
    """Whether a file holds what a call of the engine runs through."""
    return any(part in file for part in OURS)


def settled(engine: Engine) -> None:
    """Wait until nothing is left of calls that have ended."""
    for _ in range(1000):
        engine.submit("something else").result(PATIENCE_S)
        stats = engine.stats()
        waits = stats.waiting_interactive_tokens + stats.waiting_bulk_tokens
        if not waits and "pending_requests=0" in repr(engine._instance):
            break
    else:
        raise AssertionError(f"something is left: {engine._instance!r}")
    with engine._instance.core.lock:
        assert (
            repr(engine._instance.core.scheduler._in_flight_texts)
            == "InFlightTexts(in_flight=0, following=0)"
        )


def stream(engine: Engine) -> None:
    list(engine.embed_iter((f"n{n}" for n in range(4)), chunk_size=2))


CALLS: dict[str, Callable[[Engine], Any]] = {
    "embed": lambda engine: engine.embed("same"),
    "embed several": lambda engine: engine.embed(["same", "other"]),
    "embed with a timeout": lambda engine: engine.embed("same", timeout=PATIENCE_S),
    "submit": lambda engine: engine.submit("same").result(),
    "submit and wait for room": lambda engine: engine.submit(
        ["same"] * 3, priority="bulk"
    ).result(),
    "cancel": lambda engine: engine.submit(["same", "other"]).cancel(),
    "embed_iter": stream,
    "aembed": lambda engine: asyncio.run(engine.aembed(["same", "other"])),
}


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # amid a __del__
def test_a_caller_interrupted_anywhere_takes_nobody_along(call: str, inline: bool) -> None:
    runner = FakeRunner(workers=1, runs_on_callers=inline)
    with start_engine(runner, max_queue_tokens=4) as engine:
        for number in count(1):
            try:
                with interrupt(number, within=is_ours) as was_reached:
                    CALLS[call](engine)
            except KeyboardInterrupt:
                pass
            if not was_reached():
                break
            beside = engine.submit("same")  # would follow what never comes home
            assert beside.result(PATIENCE_S).vectors.tolist() == vectors_for(["same"]).tolist()
            settled(engine)
        assert number > 40, "the points were not found"
        assert engine.health == "ready"
    assert engine.health == "closed"


def test_a_close_that_is_interrupted_anywhere_is_finished_by_the_next() -> None:
    for number in count(1):
        engine = start_engine(FakeRunner())
        other = engine.__copy__()
        future = engine.submit(["a", "b"])
        other.close()
        try:
            with interrupt(number, within=is_ours) as was_reached:
                engine.close()
        except KeyboardInterrupt:
            pass
        assert len(future.result(PATIENCE_S)) == 2
        closing = threading.Thread(target=engine.close, daemon=True)
        closing.start()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        for thread in engine._instance.core._threads:
            thread.join(PATIENCE_S)
        assert engine.health == "closed"
        if not was_reached():
            break
    assert number > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # amid a finalizer
def test_a_copy_that_an_interrupt_loses_does_not_keep_the_threads() -> None:
    for number in count(1):
        engine = start_engine(FakeRunner())
        lost: list[BaseException] = []
        try:
            with interrupt(number, within=lambda file: "millpond" in file) as was_reached:
                engine.__copy__()
        except KeyboardInterrupt as error:
            lost.append(error)  # whose frames hold what the copy was made of
        engine.close()
        lost.clear()
        gc.collect()
        for thread in engine._instance.core._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), number
        if not was_reached():
            break
    assert number > 10


def test_who_waits_for_a_load_that_is_interrupted_anywhere_gets_an_engine_or_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(config: EngineConfig) -> ModelInstance:
        runner = FakeRunner()
        return ModelInstance(fake_spec(runner), [runner], [FakeTokenizer(runner)], config)

    def share() -> None:
        with suppress(EngineError):  # "loading the model was interrupted"
            found.append(Engine.shared("model"))

    monkeypatch.setattr(ModelInstance, "load", load)
    for number in count(1):
        found: list[Engine] = []
        try:
            # Not within the start of a thread, whose event the standard library leaves locked.
            with interrupt(number, within=lambda file: "millpond" in file) as was_reached:
                found.append(Engine.shared("model"))
        except KeyboardInterrupt:
            pass
        waiting = threading.Thread(target=share, daemon=True)
        waiting.start()
        waiting.join(PATIENCE_S)
        assert not waiting.is_alive(), number
        for engine in found:
            engine.embed("a")
            engine.close()
        if not was_reached():
            break
    assert number > 40
