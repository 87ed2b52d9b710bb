"""`Preemption`: on a CPU, passes of ingestion yield to those of queries.

A query has a worker of its own, and with it one thread more than there are cores. Left to the
operating system, the query's thread takes turns with the others, a few milliseconds each. So
between two operations a pass of ingestion looks whether a query is running, and waits until it is
through: the cores stay as busy as before, and the query has one for itself.

One makes room as soon as a query has arrived, before its pass begins: else the threads that bring
it there would take turns with the others too. No more passes wait than queries run, and none waits
again before it has run for as long as it waited: queries without a pause slow ingestion down and do
not stop it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..locks import SteadyCondition

__all__ = ["Preemption", "expects_queries", "here", "may_yield", "yield_to_queries"]

MOST_S = 0.1  # longer than a query's pass takes; then it shares the cores after all
EXPECTED_S = 5.0  # after a query, for the next one
ARRIVAL_S = 0.005  # longer than one that has arrived takes to begin, if it has a pass of its own


class _Query:
    """A pass, for as long as something of it is left."""


class Preemption:
    """The passes of one model that are running, in one process."""

    def __init__(self) -> None:
        self._changed = SteadyCondition()
        # Passes for queries. Weakly: a caller may be interrupted before it says that it is through.
        self.running: weakref.WeakSet[_Query] = weakref.WeakSet()
        self.yielding = 0  # passes of ingestion that wait for one of them
        self.expected_until_s = -float("inf")  # that more queries come
        self.has_waiting: Callable[[], bool] = bool
        """Says whether a query has arrived that is in no pass yet."""

    def has_room(self) -> bool:
        """Whether no pass has to wait: as many do as there are queries to wait for."""
        return self.yielding >= (len(self.running) or self.has_waiting())

    @contextmanager
    def query(self) -> Iterator[None]:
        """A pass for queries runs on this thread."""
        query = _Query()
        try:
            with self._changed:
                self.running.add(query)
            yield
        finally:
            with self._changed:
                self.running.discard(query)
                self.expected_until_s = time.perf_counter() + EXPECTED_S
                self._changed.notify_all()

    def wait(self) -> float:
        """Wait until a query is through, unless others wait for all of them; in seconds."""
        since_s = time.perf_counter()
        with self._changed:
            if not self.has_room():
                self.yielding += 1
                is_through = not self.running and self._changed.wait(ARRIVAL_S)
                if self.running and not is_through:
                    self._changed.wait(MOST_S)
                self.yielding -= 1
        return time.perf_counter() - since_s


class _Here(threading.local):
    yields_to: Preemption | None = None
    not_before_s: float = 0.0


here = _Here()
"""Of the calling thread: while it runs a pass of ingestion, whose queries it `yields_to`, and that
it has just waited until some time."""


def may_yield() -> bool:
    """Whether the pass on this thread is one of ingestion, which yields to queries."""
    return here.yields_to is not None


def expects_queries() -> bool:
    """Whether it is, and queries come in: then it does less at a time before it yields."""
    passes = here.yields_to
    return passes is not None and time.perf_counter() < passes.expected_until_s


def yield_to_queries() -> None:
    """Called between operations of a pass: let a query go first, if this is ingestion."""
    passes = here.yields_to
    if passes is not None and not passes.has_room():
        now_s = time.perf_counter()
        if now_s >= here.not_before_s:
            waited_s = passes.wait()
            here.not_before_s = now_s + 2 * waited_s
