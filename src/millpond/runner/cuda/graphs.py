"""`CudaGraphs`: CUDA graphs of one forward function, a graph for each bucket.

Python needs longer to launch the kernels of a small batch than the device to run them. A graph
launches all of them in one call, on the very tensors it was recorded with. A bucket is recorded
when it comes back, and what was recorded is compared with the plain run before it is trusted;
a model that cannot be recorded runs plainly.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import first_line, summary
from .buckets import Bucket
from .prefix_buckets import PrefixBucket

__all__ = ["Agree", "AnyBucket", "Capture", "CapturedGraph", "CudaGraphs", "record_cuda_graph"]

AnyBucket = Bucket | PrefixBucket


logger = logging.getLogger("millpond")


MOST_GRAPHS = 96


PAUSE = 256  # runs without recording, after the device was full


RELATIVE, ABSOLUTE = 1e-2, 1e-3  # half precision; a wrong tensor is further away


class CapturedGraph(Protocol):
    """Work that was recorded."""

    def replay(self) -> None:
        """Do it again, on the same tensors."""


Capture = Callable[[Callable[[], Tensor]], tuple[CapturedGraph, Tensor]]
"""Records work without doing it; gives the recording and the tensor that a replay fills."""


Agree = Callable[[bool], bool]
"""Whether something holds in every process that holds a part of the model, and so runs this."""


def record_cuda_graph() -> Capture:
    """A recorder of CUDA graphs on the current stream, all in one pool of memory.

    They share it because no two run at a time and their results are fetched in between. When the
    last of them is gone so is the pool, and the next graph begins another.
    """
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
    pools: list[Any] = []  # the one in use

    def record(work: Callable[[], Tensor]) -> tuple[CapturedGraph, Tensor]:
        if not graphs:
            pools[:] = [torch.cuda.graph_pool_handle()]
        (pool,) = pools
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do with the device meanwhile is none of the recording's business.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            vectors = work()
            graph.capture_end()
        except BaseException:
            _abandon(graph, pool)
            raise
        graphs.add(graph)
        return graph, vectors

    return record


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """End a recording that failed, so that the allocator knows of it too."""
    try:
        graph.capture_end()
    except RuntimeError:  # it says that the recording failed, which we know, and stops there
        logger.debug("a recording was abandoned", exc_info=True)
        _leave(pool)


def _leave(pool: Any) -> None:
    """What the end of a recording does with its pool, where torch did not come to it."""
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    except (AttributeError, RuntimeError):  # private names; or it had come to it after all
        logger.debug("a pool of graphs was left as it is", exc_info=True)


class CudaGraphs:
    """`forward(bucket, integers)`, recorded where that pays. Used by one thread at a time.

    `integers` must be the same memory in every call: a graph reads where it was recorded. A forward
    may write to memory of its own too, the same when it is done again.
    """

    def __init__(
        self,
        forward: Callable[[AnyBucket, Tensor], Tensor],
        recorder: Capture,
        *,
        most_graphs: int = MOST_GRAPHS,
        agree: Agree | None = None,
    ) -> None:
        """Where processes have to replay together, `agree` lets none record what another cannot."""
        self._forward = forward
        self._record = recorder
        self._most_graphs = most_graphs
        self._agree = agree or bool
        self._seen: set[AnyBucket] = set()
        self._recorded: OrderedDict[AnyBucket, tuple[CapturedGraph, Tensor]] = OrderedDict()
        self._pause = 0  # runs until recording is tried again
        self.reason_against: str | None = None
        """Why the model is not recorded, once that is known."""

    def __len__(self) -> int:
        """Graphs kept."""
        return len(self._recorded)

    def run(self, bucket: AnyBucket, integers: Tensor, texts: int) -> Tensor:
        """The vectors of a bucket, of which the first `texts` mean something.

        A later call may overwrite them.
        """
        found = self._recorded.get(bucket)
        if found is not None:
            self._recorded.move_to_end(bucket)
            recording, vectors = found
            recording.replay()
            return vectors
        plain = self._forward(bucket, integers)
        if self._pause:
            self._pause -= 1
        elif self.reason_against is None and bucket in self._seen:
            self._keep(bucket, integers, plain[:texts])
        else:
            self._seen.add(bucket)
        return plain

    def _keep(self, bucket: AnyBucket, integers: Tensor, expected: Tensor) -> None:
        """Record a bucket and verify it on the batch that was just run."""
        made = self._attempt(lambda: self._record(lambda: self._forward(bucket, integers)))
        if made is None:
            return
        recording, vectors = made
        close = self._attempt(lambda: _replays(recording, vectors, expected))
        if close is None:
            return
        if not self._agree(close):
            self._disable("a replay gave other vectors than the run it was recorded from")
            return
        self._recorded[bucket] = (recording, vectors)
        if len(self._recorded) > self._most_graphs:
            oldest, _ = self._recorded.popitem(last=False)
            self._seen.discard(oldest)

    def _attempt(self, work: Callable[[], Any]) -> Any:
        """What some work gives; None where it raises, here or in a process that does the same."""
        found, error = None, None
        try:
            found = work()
        except Exception as raised:  # whatever the model's code does that a graph cannot
            error = raised
        if self._agree(error is None):
            return found
        if self._agree(error is None or "out of memory" in first_line(error)):
            self._make_room()
        else:
            self._disable("another process failed" if error is None else summary(error))
        return None

    def _make_room(self) -> None:
        """Batches come first: without graphs for a while, and then again."""
        logger.debug("no memory for another CUDA graph; none are kept for now")
        self.clear()
        self._pause = PAUSE

    def _disable(self, reason: str) -> None:
        self.clear()
        self.reason_against = reason
        logger.info("the model is not captured as CUDA graphs: %s", reason)

    def clear(self) -> None:
        """Let go of every graph and the memory it holds."""
        self._recorded.clear()
        self._seen.clear()

    def __repr__(self) -> str:
        return f"CudaGraphs(graphs={len(self)}, seen={len(self._seen)})"


def _replays(recording: CapturedGraph, vectors: Tensor, expected: Tensor) -> bool:
    """Whether a replay gives what was computed, up to rounding."""
    recording.replay()
    return torch.allclose(vectors[: len(expected)], expected, RELATIVE, ABSOLUTE, equal_nan=True)
