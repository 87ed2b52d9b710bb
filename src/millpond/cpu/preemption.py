"""`Preemption`: on a CPU, passes of ingestion yield to those of queries.

A query has a worker of its own, and with it one thread more than there are cores. Left to the
operating system, the query's thread takes turns with the others, a few milliseconds each. So
between two operations a pass of ingestion looks whether a query is running, and waits until it is
through: the cores stay as busy as before, and the query has one for itself.

One makes room as soon as a query has arrived, before its pass begins, and until its vector is with
its caller: else the threads that bring it there and back would wait for the others, for a processor
and for the interpreter. The pass gets the processor of the one that waits for it, since to Linux an
idle processor of a virtual machine may look taken. No more passes wait than queries run, and none
waits again before it has run for as long as it waited: queries without a pause slow ingestion down
and do not stop it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..locks import SteadyCondition
from .team import this_processor

__all__ = ["Preemption", "expects_queries", "here", "may_yield", "yield_to_queries"]

MOST_S = 0.1  # longer than a query's pass takes; then it shares the cores after all
EXPECTED_S = 5.0  # after a query, for the next one
CAN_MOVE = hasattr(os, "sched_setaffinity")
ARRIVAL_S = 0.005  # longer than one that has arrived takes to begin, if it has a pass of its own


class _Query:
    """A pass, for as long as something of it is left."""

    def __init__(self, thread_id: int | None) -> None:
        """`thread_id` is the operating system's, of a thread that may be moved."""
        self._thread_id = thread_id
        self._processors: set[int] = set()  # that its thread had before it was moved

    def move_to(self, processor: int) -> None:
        """Keep its thread to a processor that has nothing else to do, until `let_go`."""
        if self._thread_id is None or self._processors:
            return
        with suppress(OSError):  # the system does not allow it
            processors = os.sched_getaffinity(self._thread_id)
            if processor in processors:
                os.sched_setaffinity(self._thread_id, {processor})
                self._processors = processors

    def let_go(self) -> None:
        """Let its thread run where it did before."""
        if self._thread_id is not None and self._processors:
            with suppress(OSError):
                os.sched_setaffinity(self._thread_id, self._processors)


class Preemption:
    """The passes of one model that are running, in one process."""

    def __init__(self) -> None:
        self._changed = SteadyCondition()
        # Passes for queries. Weakly: a caller may be interrupted before it says that it is through.
        self.running: weakref.WeakSet[_Query] = weakref.WeakSet()
        self.yielding = 0  # passes of ingestion that wait for one of them
        self._free: list[int] = []  # processors of those, for queries that are still to begin
        self.expected_until_s = -float("inf")  # that more queries come
        self.has_waiting: Callable[[], bool] = bool
        """Says whether a query has arrived that is in no pass yet."""

    def has_room(self) -> bool:
        """Whether no pass has to wait: as many do as there are queries to wait for."""
        return self.yielding >= (len(self.running) or self.has_waiting())

    @contextmanager
    def query(self) -> Iterator[None]:
        """A pass for queries runs on this thread."""
        query = _Query(None)
        try:
            self._begin(query)
            yield
        finally:
            self._end(query)

    def begin_query(self, *, may_move: bool) -> None:
        """A pass for queries begins on this thread, an engine's own. It lasts until `end_query`;
        passes in between are of the same.

        One that takes a single thread `may_move`: threads of a team that is made meanwhile would be
        kept to its processor for good.
        """
        if here.query is None:
            here.query = _Query(threading.get_native_id() if may_move and CAN_MOVE else None)
            self._begin(here.query)

    def end_query(self) -> None:
        """What came of it is with its callers, who are awake: others may have the processor."""
        if here.query is not None:
            self._end(here.query)
            here.query = None

    def _begin(self, query: _Query) -> None:
        with self._changed:
            self.running.add(query)
            if self._free:
                query.move_to(self._free.pop())

    def _end(self, query: _Query) -> None:
        with self._changed:
            self.running.discard(query)
            query.let_go()
            self.expected_until_s = time.perf_counter() + EXPECTED_S
            self._changed.notify_all()

    def wait(self) -> float:
        """Wait until a query is through, unless others wait for all of them; in seconds."""
        since_s = time.perf_counter()
        with self._changed:
            if not self.has_room():
                self.yielding += 1
                is_through = not self.running and self._wait_for_arrival()
                if self.running and not is_through:
                    for query in self.running:
                        query.move_to(this_processor())
                    self._changed.wait(MOST_S)
                self.yielding -= 1
        return time.perf_counter() - since_s

    def _wait_for_arrival(self) -> bool:
        """Whether the query that has arrived was through in that time."""
        processor = this_processor()
        self._free.append(processor)
        is_through = self._changed.wait(ARRIVAL_S)
        if processor in self._free:
            self._free.remove(processor)
        return is_through


class _Here(threading.local):
    yields_to: Preemption | None = None
    not_before_s: float = 0.0
    query: _Query | None = None


here = _Here()
"""Of the calling thread: while it runs a pass of ingestion, whose queries it `yields_to`, and that
it has just waited until some time. While it runs one for queries of an engine's own: `query`."""


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
