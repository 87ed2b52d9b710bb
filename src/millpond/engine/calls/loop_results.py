"""`LoopResults`: results for an event loop, which many calls get with one wake-up.

Waking a loop costs a system call, and the interpreter changes hands for it. The calls of a batch
end together, so the first of them wakes their loop, and it finds the others.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from ...scheduler.request_future import this_thread

__all__ = ["awaitable"]


class _ThisThread(threading.local):
    results: LoopResults | None = None


_this_thread = _ThisThread()


def awaitable(call: Future[Any]) -> asyncio.Future[Any]:
    """A future of the running event loop that ends as the call does.

    Cancelling it leaves the call alone.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[Any] = loop.create_future()
    if call.done():
        _copy(call, waiting)
        return waiting
    results = _this_thread.results
    if results is None or results.loop() is not loop:
        results = _this_thread.results = LoopResults(loop)
    call.add_done_callback(partial(results.put, waiting))
    return waiting


class LoopResults:
    """Calls that have ended, for one event loop to take."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)
        self._ended: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._is_woken = False  # by a thread of an engine; the loop has not looked since

    def put(self, waiting: asyncio.Future[Any], call: Future[Any]) -> None:
        """A call has ended. Any thread may call it."""
        self._ended.append((waiting, call))
        # Other threads may be interrupted here, and what they leave half done must not matter.
        is_ours = this_thread.is_uninterrupted
        if is_ours and self._is_woken:
            return
        self._is_woken = self._is_woken or is_ours
        if is_ours and this_thread.later is not None:
            this_thread.later.append(self._wake)
        else:
            self._wake()

    def _wake(self) -> None:
        loop = self.loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._take)
        except RuntimeError:  # it is closed, and no call waits there
            self._ended.clear()

    def _take(self) -> None:
        self._is_woken = False  # first: what is put from now on wakes again
        while self._ended:
            waiting, call = self._ended.popleft()
            if not waiting.done():
                _copy(call, waiting)

    def __repr__(self) -> str:
        return f"LoopResults(ended={len(self._ended)})"


def _copy(call: Future[Any], waiting: asyncio.Future[Any]) -> None:
    try:
        error = call.exception()
    except CancelledError:
        waiting.cancel()
        return
    if error is None:
        waiting.set_result(call.result())
    else:
        waiting.set_exception(error)
