"""`RequestFuture`, the future of one call, and which threads may not wait for it.

A call that waits on a thread of the engine waits for itself. So those threads are marked, as
is a caller's while it runs what it waits for, and there the call that would wait raises.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures._base import FINISHED
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from ..errors import EngineError
from ..locks import Gate, SteadyFuture
from ..outputs import CallResult

__all__ = ["GuardedFuture", "OwnThreads", "RequestFuture", "ending_several", "this_thread"]

logger = logging.getLogger("millpond")

Result = TypeVar("Result")


class _ThisThread(threading.local):
    works_for: OwnThreads | None = None
    is_uninterrupted: bool = False
    """Whether it is an engine's own, and not a caller's that runs its own query."""
    later: list[Callable[[], object]] | None = None
    """While it ends several calls: what it does when all of them have ended."""


this_thread = _ThisThread()
"""Whose the calling thread is. Written by plain assignment, which no interrupt divides."""


@contextmanager
def ending_several() -> Iterator[None]:
    """On an engine's own thread: threads that wait for calls ending here are woken after the last.

    A thread that is woken wants the interpreter, and would have the others wait for it.
    """
    before = this_thread.later
    later: list[Callable[[], object]] = []
    this_thread.later = later
    try:
        yield
    finally:
        this_thread.later = before
        for wake in later:
            wake()


class OwnThreads:
    """Where waiting for an engine would be for ever.

    That is on its threads, and on one that holds its `lock`: a finalizer may run there amid
    anything.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def include_this(self) -> bool:
        """Whether the calling thread is one of them."""
        return this_thread.works_for is self or bool(self._lock._is_owned())

    def require_another(self) -> None:
        """Raise `EngineError` where the calling thread would wait for itself."""
        if self.include_this():
            raise EngineError(
                "a stats hook or done-callback on the engine's own thread, or a finalizer amid its "
                "work, cannot wait for the engine; use submit, and a done-callback for its result"
            )


class _Waiters(list[Any]):
    """Those of `concurrent.futures.wait` and `as_completed`, refused where they would hang."""

    def __init__(self, future: RequestFuture) -> None:
        super().__init__()
        self._future = weakref.ref(future)

    def append(self, waiter: Any) -> None:
        if (future := self._future()) is not None:
            future.require_may_wait()
        super().append(waiter)


def _call(
    function: Callable[[Future[CallResult]], object],
    threads: OwnThreads | None,
    future: Future[CallResult],
) -> None:
    """A done-callback. On an engine's thread nothing that it raises gets any further."""
    try:
        function(future)
    except BaseException:  # SystemExit and CancelledError too: others wait for this thread
        if threads is None or this_thread.works_for is not threads:
            raise
        logger.exception("a done-callback raised; the engine goes on")


class GuardedFuture(SteadyFuture[Result]):
    """Its result and its error are waited for where `require_may_wait` does not object."""

    def require_may_wait(self) -> None:
        """Raise `EngineError` where its engine's own thread would wait for it."""
        raise NotImplementedError

    def result(self, timeout: float | None = None) -> Result:
        if self._state == FINISHED and self._exception is None:  # it stays so, without its lock
            return self._result  # type: ignore[return-value]
        self.require_may_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if self._state == FINISHED:
            return self._exception
        self.require_may_wait()
        return super().exception(timeout)


class RequestFuture(GuardedFuture[CallResult]):
    """The future of a request. Cancelling it takes the texts that have not run out of the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.admission: Gate | None = None
        """Of a caller that waits until its request is admitted to its queue, or has ended."""
        self._waiters = _Waiters(self)
        self._threads: OwnThreads | None = None
        self._on_cancel: Callable[[], object] | None = None

    def serve(self, threads: OwnThreads, on_cancel: Callable[[], object]) -> None:
        """The threads that are to end it, and what is called when it is cancelled."""
        self._threads, self._on_cancel = threads, on_cancel

    def require_may_wait(self) -> None:
        if self._threads is not None and not self.done():
            self._threads.require_another()

    def admit(self) -> None:
        """Its request has been admitted, or has ended."""
        if self.admission is not None:
            self.admission.open()

    def cancel(self) -> bool:
        """End it, unless it has ended. It may be called anywhere, in a finalizer too."""
        was_done = self.done()
        try:
            cancelled = super().cancel()
        finally:
            if not was_done and self._on_cancel is not None and self.cancelled():
                self._on_cancel()
        return cancelled

    def abandon(self) -> None:
        """Have it cancelled by its engine. It takes no lock, so a finalizer may call it."""
        if self._on_cancel is not None:
            self._on_cancel()

    def add_done_callback(self, fn: Callable[[Future[CallResult]], object]) -> None:
        """Call `fn` with the future when it has ended. What it raises stops no other callback."""
        super().add_done_callback(partial(_call, fn, self._threads))

    def fail_in_child(self, error: BaseException) -> None:
        """End the copy that a forked child has, whose old lock a lost thread may hold."""
        if not self.is_done_in_child():
            self.set_exception(error)
