"""What the exit of the process waits for: the threads of every loop, and callers at work.

A thread that frees tensors, or is in the middle of a pass, while the interpreter finalises takes
the process down with it. Whoever started it may be gone by then: an engine nobody holds any more
finishes what it accepted.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from ..errors import EngineClosed

__all__ = ["Stoppable", "clear", "register", "stop_all", "while_running"]

Result = TypeVar("Result")


class Stoppable(Protocol):
    """What threads work for; they hold it while they run."""

    def close(self, *, drain: bool, wait: bool) -> None:
        """Have them come to their end."""


# Changed by single operations alone, for a fork, an interrupt or a collection may come at any time.
_threads: dict[threading.Thread, weakref.ref[Stoppable]] = {}


_at_work: set[threading.Lock] = set()  # each held by a caller's thread while it computes


_process_ends = threading.Event()


def register(owner: Stoppable, threads: Iterable[threading.Thread]) -> None:
    """Threads were started for `owner`, which is not kept."""
    for thread in list(_threads):
        if not thread.is_alive():
            _threads.pop(thread, None)
    _threads.update(dict.fromkeys(threads, weakref.ref(owner)))


def while_running(work: Callable[[], Result]) -> Result:
    """Do what runs native code on a caller's thread, which may be a daemon.

    The exit waits for it, and from then on it raises `EngineClosed`.
    """
    held = threading.Lock()
    _at_work.add(held)
    try:
        with held:
            if _process_ends.is_set():
                raise EngineClosed("the process is ending")
            return work()
    finally:
        _at_work.discard(held)


def stop_all() -> None:
    """At the end of the process: close every owner, and wait until all the threads have ended."""
    _process_ends.set()
    for found in list(_threads.values()):
        if (owner := found()) is not None:
            owner.close(drain=False, wait=False)
    for thread in list(_threads):
        thread.join()
    for held in list(_at_work):
        held.acquire()  # by now its thread is through, or finds that the process ends


def clear() -> None:
    """In a forked child: the threads stayed behind."""
    _threads.clear()
    _at_work.clear()
    _process_ends.clear()
