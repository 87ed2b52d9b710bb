"""Results for an event loop: one wake-up for the calls of a batch, and none for an ended loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest
from fakes import FakeRunner, held_engine, vectors_for

from millpond.engine.calls.loop_results import awaitable
from millpond.scheduler.request_future import ending_several, this_thread


@pytest.fixture
def on_an_engines_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is not interrupted."""
    monkeypatch.setattr(this_thread, "is_uninterrupted", True)


def test_calls_that_end_together_wake_their_loop_once(on_an_engines_thread: None) -> None:
    async def wait_for(calls: list[Future[int]]) -> tuple[list[int], int]:
        wakes = []
        loop = asyncio.get_running_loop()
        waiting = [awaitable(call) for call in calls]
        loop.call_soon_threadsafe, call_soon = (  # type: ignore[method-assign]
            lambda *args, **options: wakes.append(args) or call_soon(*args, **options),
            loop.call_soon_threadsafe,
        )
        for number, call in enumerate(calls):
            call.set_result(number)
        return await asyncio.gather(*waiting), len(wakes)

    assert asyncio.run(wait_for([Future() for _ in range(5)])) == ([0, 1, 2, 3, 4], 1)


def test_a_loop_is_woken_when_the_last_of_several_calls_has_ended(
    on_an_engines_thread: None,
) -> None:
    async def ended_before_the_wake(calls: list[Future[int]]) -> list[int]:
        loop = asyncio.get_running_loop()
        waiting = [awaitable(call) for call in calls]
        ended: list[int] = []
        loop.call_soon_threadsafe, call_soon = (  # type: ignore[method-assign]
            lambda *args, **options: (
                ended.append(sum(call.done() for call in calls)) or call_soon(*args, **options)
            ),
            loop.call_soon_threadsafe,
        )
        with ending_several(), ending_several():
            for call in calls:
                call.set_result(1)
        await asyncio.gather(*waiting)
        assert this_thread.later is None
        return ended

    assert asyncio.run(ended_before_the_wake([Future() for _ in range(4)])) == [4]


def test_a_thread_that_may_be_interrupted_wakes_the_loop_for_each() -> None:
    """Between its two steps it may be stopped, and the others must not count on it."""

    async def wakes_for(calls: list[Future[int]]) -> int:
        wakes = []
        loop = asyncio.get_running_loop()
        waiting = [awaitable(call) for call in calls]
        loop.call_soon_threadsafe, call_soon = (  # type: ignore[method-assign]
            lambda *args, **options: wakes.append(args) or call_soon(*args, **options),
            loop.call_soon_threadsafe,
        )
        for call in calls:
            call.set_result(1)
        await asyncio.gather(*waiting)
        return len(wakes)

    assert asyncio.run(wakes_for([Future() for _ in range(3)])) == 3


def test_errors_and_cancellations_are_handed_over() -> None:
    async def outcomes() -> list[Any]:
        failed, cancelled, done = Future[int](), Future[int](), Future[int]()
        done.set_result(3)
        waiting = [awaitable(call) for call in (failed, cancelled, done)]
        failed.set_exception(KeyError("lost"))
        cancelled.cancel()
        return await asyncio.gather(*waiting, return_exceptions=True)

    failed, cancelled, done = asyncio.run(outcomes())
    assert isinstance(failed, KeyError)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert done == 3


def test_a_call_that_ends_after_its_loop_disturbs_nothing() -> None:
    call = Future[int]()

    async def leave() -> None:
        awaitable(call)

    asyncio.run(leave())
    call.set_result(1)


def test_several_loops_one_after_another_get_their_own_results() -> None:
    with held_engine(runner := FakeRunner()) as engine:
        runner.let()
        for number in range(3):

            async def ask(text: str = f"text {number}") -> Any:
                return await asyncio.gather(*(engine.aembed(text) for _ in range(8)))

            found = asyncio.run(ask())
            assert all((vector == vectors_for([f"text {number}"])[0]).all() for vector in found)
