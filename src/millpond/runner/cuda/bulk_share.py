"""`BulkShare`: the part of a GPU that bulk batches have while queries come in.

While they do, work that was captured for the whole device is captured on a stream of that part too,
and a batch replays the one or the other. Both wait for what was launched before, so they read and
write the same memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .graphs import CapturedGraph, cuda_graph_capture
from .own_stream import OwnStream

__all__ = ["BulkShare"]

QUERY_MEMORY_S = 0.5  # how long after a query others are expected


class BulkShare:
    """Captures and replays on a part of a device.

    Any thread may say that a query came; all else is for the one that launches.
    """

    def __init__(self, stream: OwnStream, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`stream` is one whose kernels have that part alone."""
        self._own = stream
        self._capture = cuda_graph_capture()
        self._clock = clock
        self._last_query_s = -float("inf")

    def note_query(self) -> None:
        """A query is launched, and others may follow it."""
        self._last_query_s = self._clock()

    @property
    def is_on(self) -> bool:
        """Whether bulk batches are to leave the rest of the device to queries."""
        return self._clock() - self._last_query_s < QUERY_MEMORY_S

    def capture(self, work: Callable[[], Tensor]) -> tuple[CapturedGraph, Tensor]:
        """Capture work for the part; a replay is in the order of the stream it is called on."""
        with self._in_order():
            graph, vectors = self._capture(work)
        return _PartGraph(graph, self), vectors

    def take_workspace(self) -> None:
        """Have cuBLAS allocate what the calling thread's products on the part need."""
        with self._in_order():
            rows = torch.zeros(16, 16, device=self._own.stream.device)
            rows @ rows

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """Launches go to the part, after those on the current stream, and before later ones."""
        part = self._own.stream
        current = torch.cuda.current_stream(part.device)
        part.wait_stream(current)
        with torch.cuda.stream(part):
            yield
        current.wait_stream(part)

    def __repr__(self) -> str:
        return f"BulkShare({self._own!r}, is_on={self.is_on})"


class _PartGraph:
    """What was captured for the part."""

    def __init__(self, graph: CapturedGraph, share: BulkShare) -> None:
        self._graph = graph
        self._share = share

    def replay(self) -> None:
        """Do it again, on the same tensors."""
        with self._share._in_order():
            self._graph.replay()
