"""The threads of every loop, until they have ended: the exit of the process waits for them.

A thread that frees tensors while the interpreter finalises takes the process down with it. Whoever
started it may be gone by then: an engine nobody holds any more finishes what it accepted.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Protocol

__all__ = ["Stoppable", "forget_all", "note", "stop_all"]


class Stoppable(Protocol):
    """What threads work for; they hold it while they run."""

    def close(self, *, drain: bool, wait: bool) -> None:
        """Have them come to their end."""


# Changed by single operations of a dict alone, for a fork or a collection may come at any time.
_threads: dict[threading.Thread, weakref.ref[Stoppable]] = {}


def note(owner: Stoppable, threads: Iterable[threading.Thread]) -> None:
    """Threads were started for `owner`, which is not kept."""
    for thread in list(_threads):
        if not thread.is_alive():
            _threads.pop(thread, None)
    _threads.update(dict.fromkeys(threads, weakref.ref(owner)))


def stop_all() -> None:
    """At the end of the process: close every owner, and wait until all the threads have ended."""
    for found in list(_threads.values()):
        if (owner := found()) is not None:
            owner.close(drain=False, wait=False)
    for thread in list(_threads):
        thread.join()


def forget_all() -> None:
    """In a forked child: the threads stayed behind."""
    _threads.clear()
