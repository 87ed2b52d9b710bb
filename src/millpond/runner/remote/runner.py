"""`RemoteRunner`: a `ModelRunner` whose model is in other processes.

A batch goes to its child through one of a few ports, each of which carries one batch at a time: as
many as the child's own limits say. `launch` writes it there, and `collect` waits at
the port's socket, so no thread stands between the engine's and the child's. Where several ranks
hold the model, all of them read every batch, in the order in which they were launched, and rank 0
answers.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ...errors import ProcessDied
from ...model.info import RouteInfo
from ...outputs import Rows
from ...scheduler.batch import Batch, BatchShape
from ..base import BatchHandle
from .batch_codec import arrays_of, rows_of
from .channel import Message, Port, port_pair
from .child import FREE_MEMORY, GAVE_ROWS, RAISED, RUN
from .errors import arrived_of
from .group import ChildGroup, load_groups
from .messages import ConnectionEnded, send_message
from .task import ChildTask, RunnerFacts, slots_of

__all__ = ["RemoteRunner"]


@dataclass(slots=True, eq=False)
class RemoteBatch:
    """A batch that is with the children."""

    port: Port
    is_query: bool
    padded_tokens: int = 0
    """Known once it is collected."""


PortPool = queue.LifoQueue[Port | None]
"""The ports that carry no batch, the one used last first, or None once there will be none."""


class RemoteRunner:
    """Runs batches in children. They end when it is closed or collected."""

    def __init__(self, group: ChildGroup, ranks: Sequence[RunnerFacts]) -> None:
        """Of a group that is loaded, and what its ranks say. Raises `ProcessDied`."""
        self._group = group
        self.pids = group.pids
        self.facts = ranks[0]
        self.device_name = self.facts.device_name
        self.dtype_name = self.facts.dtype_name
        self.limits = self.facts.limits
        self.routes: Sequence[RouteInfo] = self.facts.routes
        self.shapes: Sequence[BatchShape] = self.facts.shapes
        self.prefix_cache_config = self.facts.prefix_cache_config
        any_batch, queries = slots_of(self.limits)
        made = [port_pair(len(ranks)) for _ in range(any_batch + queries)]
        group.serve(made, send_message)
        ports = [port for port, _ in made]
        # Where queries run apart, a port is always theirs: its thread launches nothing else.
        apart = queries if self.limits.queries_apart else 0
        self._ports = _pool_of(ports[apart:])
        self._query_ports = _pool_of(ports[:apart]) if apart else self._ports
        self._order = threading.Lock() if len(ranks) > 1 else None
        self._numbers = itertools.count()  # of launches; with the lock where order matters

    @classmethod
    def load(cls, tasks: Sequence[ChildTask]) -> Self:
        """A runner whose model several ranks hold, or one. Raises what their loader raises."""
        (runner,) = cls.load_several([tasks])
        return runner

    @classmethod
    def load_several(cls, tasks: Sequence[Sequence[ChildTask]]) -> list[Self]:
        """A runner for each, loaded at the same time. Where one fails, none is left."""
        loaded = load_groups(tasks)
        try:
            return [cls(group, facts) for group, facts in loaded]
        except BaseException:
            for group, _ in loaded:
                group.end()
            raise

    def can_run_inline(self, batch: Batch) -> bool:
        """A caller may be interrupted while the children answer."""
        return False

    def launch(self, batch: Batch) -> RemoteBatch:
        """Send a batch. Raises `ProcessDied`."""
        is_query = not batch.has_bulk
        return RemoteBatch(self._send(RUN, arrays_of(batch), is_query=is_query), is_query)

    def collect(self, handle: BatchHandle) -> Rows:
        """Wait for its rows. Raises what the child's runner raised, and `ProcessDied`."""
        assert isinstance(handle, RemoteBatch)
        try:
            answer = self._receive(handle.port)
            if answer.kind == RAISED:
                failure = arrived_of(answer.arrays[0])
                vars(failure.error)["in_child"] = failure
                raise failure.error
            assert answer.kind == GAVE_ROWS
            rows, handle.padded_tokens = rows_of(answer.arrays)
        finally:
            self._pool(handle.is_query).put(handle.port)
        return rows

    def _send(self, kind: int, arrays: Sequence[Any] = (), *, is_query: bool = False) -> Port:
        """A free port, waited for, after a command went to it. Raises `ProcessDied`."""
        pool = self._pool(is_query)
        port = pool.get()
        if port is None:
            raise self._lost()
        try:
            self._send_to(port, kind, arrays)
        except BaseException as error:
            pool.put(port)
            if isinstance(error, ConnectionEnded):
                raise self._lost() from None
            raise
        return port

    def _send_to(self, port: Port, kind: int, arrays: Sequence[Any]) -> None:
        if self._order is None:
            port.send(kind, arrays)
            return
        with self._order:
            port.send(kind, arrays, number=next(self._numbers))

    def _receive(self, port: Port) -> Message:
        try:
            answer, others = port.receive(), port.acknowledgements()
        except ConnectionEnded:
            raise self._lost() from None
        if any((kind == RAISED) != (answer.kind == RAISED) for kind in others):
            raise ProcessDied("a batch failed in one rank of the model and not in another")
        return answer

    def _pool(self, is_query: bool) -> PortPool:
        return self._query_ports if is_query else self._ports

    def _lost(self) -> Exception:
        for pool in {self._ports, self._query_ports}:
            pool.put(None)  # for those who wait, and after them for the next
        return ProcessDied(str(self._group.lost()))  # each time another: it may be raised anew

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch could succeed where this error was raised."""
        failure = vars(error).get("in_child")
        return isinstance(error, MemoryError) if failure is None else failure.is_out_of_memory

    def is_fatal(self, error: BaseException) -> bool:
        """Whether no batch can succeed after this error."""
        failure = vars(error).get("in_child")
        return isinstance(error, ProcessDied) if failure is None else failure.is_fatal

    def free_memory(self) -> None:
        """Have every rank give cached device memory back. Raises `ProcessDied`."""
        port = self._send(FREE_MEMORY)
        try:
            self._receive(port)
        finally:
            self._ports.put(port)

    def look_for_queries(self, has_waiting: Callable[[], bool]) -> None:
        """Nothing: a process is given one kind of batch or the other."""

    def delivered(self) -> None:
        """What came of the calling thread's last batch is with its callers."""

    def tell_when_lost(self, tell: Callable[[Exception], object]) -> None:
        """Call `tell` with a `ProcessDied` when a child ends by itself; on another thread, or
        now."""
        self._group.tell_when_lost(tell)

    def close(self, *, wait: bool = True) -> None:
        """End the children, and with `wait` wait for that. Batches that are with them fail."""
        if wait:
            self._group.close()
        else:
            self._group.end()

    def __repr__(self) -> str:
        return f"RemoteRunner({self.device_name!r}, pids={self.pids})"


def _pool_of(ports: Sequence[Port]) -> PortPool:
    pool = PortPool()
    for port in ports:
        pool.put(port)
    return pool
