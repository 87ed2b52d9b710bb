"""Locks, gates and futures that survive what a caller's thread goes through.

- An interrupt may come between any two operations of a caller. What is shared with other threads is
  therefore locked and let go in single steps of the interpreter: `with` on a lock that is written
  in C, and no `with` on an object whose methods are Python.
- A collection may come in the middle of anything, and run a finalizer that cancels a call. All it
  may use is what needs no lock: appending to a deque, and `Gate.open`.
- A fork leaves all threads but one behind, with the locks they held. `fork_safe` names the locks
  that are free again in the child.
"""

from __future__ import annotations

import operator
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED
from typing import Any, TypeVar

__all__ = ["Gate", "SteadyCondition", "SteadyFuture", "fork_safe", "this_thread_pauses"]

Lock = TypeVar("Lock")
Result = TypeVar("Result")

_ENDED = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)
_fork_safe: weakref.WeakSet[Any] = weakref.WeakSet()  # all that live; changed by any thread


def fork_safe(lock: Lock) -> Lock:
    """The lock itself, which from now on is free in a forked child, also if a thread held it."""
    _fork_safe.add(lock)
    return lock


def _free_all() -> None:
    for lock in list(_fork_safe):
        lock._at_fork_reinit()  # what the standard library's own locks are renewed with


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_all)


class _Pauses(threading.local):
    call: Callable[[], object] | None = None

    def __call__(self) -> None:
        if self.call is not None:
            self.call()


this_thread_pauses = _Pauses()
"""Called between short pieces of long work in Python: other threads may wait for the interpreter.

Left to itself it changes hands every five milliseconds. `call` is what the thread does then.
"""


class Gate:
    """What one thread waits at until another opens it. It stays open until that thread is through.

    Any thread may open it at any time, a finalizer too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let the thread through, now or when it comes. Nothing happens if it is open."""
        try:
            self._lock.release()
        except RuntimeError:  # it is open
            return

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it is open, or for that many seconds, and close it."""
        timeout_s = -1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        self._lock.acquire(timeout=timeout_s)

    def __repr__(self) -> str:
        return f"Gate({'closed' if self._lock.locked() else 'open'})"


class SteadyCondition:
    """A condition that an interrupted thread leaves unlocked.

    The standard library's locks in a method written in Python: an interrupt after its last step
    leaves the lock held for ever, and the thread that wants to end the future waits for it. And it
    is made of a dozen objects, where every query has one.
    """

    __slots__ = ("_lock", "_waiters")

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()
        self._waiters: tuple[threading.Lock, ...] = ()  # under the lock

    __enter__ = property(operator.attrgetter("_lock.__enter__"))
    __exit__ = property(operator.attrgetter("_lock.__exit__"))

    @property
    def acquire(self) -> Any:
        """The lock's own, as the standard library's functions over several futures call it."""
        return self._lock.acquire

    @property
    def release(self) -> Any:
        """The lock's own."""
        return self._lock.release

    def wait(self, timeout: float | None = None) -> bool:
        """Wait to be notified. However it ends, the lock is held again."""
        gate = threading.Lock()
        gate.acquire()
        self._waiters = (*self._waiters, gate)
        once_by_us = (1, threading.get_ident())
        try:
            self._lock.release()
            was_notified = gate.acquire(timeout=-1 if timeout is None else max(0.0, float(timeout)))
        except BaseException:
            if not self._lock._is_owned():
                self._lock._acquire_restore(once_by_us)
            raise
        self._lock._acquire_restore(once_by_us)  # which no interrupt ends
        if not was_notified:
            self._waiters = tuple(waiter for waiter in self._waiters if waiter is not gate)
        return was_notified

    def wait_for(self, holds: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until something holds, at most `timeout` seconds; whether it does."""
        until_s = None if timeout is None else time.monotonic() + timeout
        while not holds():
            left_s = None if until_s is None else until_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            self.wait(left_s)
        return True

    def notify_all(self) -> None:
        """With the lock held: let all waiting threads go on."""
        assert self._lock._is_owned()
        waiters, self._waiters = self._waiters, ()
        for gate in waiters:
            gate.release()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(waiters={len(self._waiters)})"


class SteadyFuture(Future[Result]):
    """A future whose waiting threads may be interrupted at any time."""

    def __init__(self) -> None:
        """What the standard library's sets, but for its condition: a query is a future each."""
        self._condition: Any = SteadyCondition()
        self._state: str = "PENDING"
        self._result: Result | None = None
        self._exception: BaseException | None = None
        self._waiters: Any = []
        self._done_callbacks: list[Callable[[Future[Result]], object]] = []

    def done(self) -> bool:
        """Whether it has ended. That stays so, and is read without the lock: every query asks."""
        return self._state in _ENDED

    def is_done_in_child(self) -> bool:
        """In a forked child, where a lost thread may hold the old lock: whether it has ended."""
        self._condition._lock._at_fork_reinit()
        return self.done()
