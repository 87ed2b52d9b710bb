"""`CudaGraphs`: CUDA graphs of one forward function, a graph for each bucket.

Python needs longer to launch the kernels of a small batch than the device to run them. A graph
launches all of them in one call, on the very tensors it was captured with. A bucket is captured
when it comes back, at once or when that pays, and what was captured is compared with the plain run
before it is trusted; a model that cannot be captured runs plainly.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import first_line, summary
from .buckets import Bucket
from .plain_runs import AtOnce, PlainRuns
from .prefix_buckets import PrefixBucket

__all__ = [
    "Agree",
    "AnyBucket",
    "Capture",
    "CapturedGraph",
    "CudaGraphs",
    "Share",
    "cuda_graph_capture",
]

AnyBucket = Bucket | PrefixBucket


logger = logging.getLogger("millpond")


MOST_GRAPHS = 96


MOST_TIMES_ROWS = 2  # of a batch, where a larger bucket spares it launches


PAUSE = 256  # runs without capture, after the device was full


RELATIVE, ABSOLUTE = 1e-2, 1e-3  # half precision; a wrong tensor is further away


class CapturedGraph(Protocol):
    """Work that was captured."""

    def replay(self) -> None:
        """Do it again, on the same tensors."""


Captured = tuple[CapturedGraph, Tensor]
"""A graph and the tensor that a replay fills."""


Capture = Callable[[Callable[[], Tensor]], Captured]
"""Captures work without doing it."""


class Share(Protocol):
    """A part of the device, on which a replay may run instead."""

    @property
    def is_on(self) -> bool:
        """Whether it is to run there now."""

    def capture(self, work: Callable[[], Tensor]) -> Captured:
        """Capture work for that part."""


@dataclass(slots=True)
class _Kept:
    """A graph, the tensor that a replay fills, and what its first replay showed."""

    graph: CapturedGraph
    vectors: Tensor
    close: Tensor | None
    """Whether it gave what the plain run had given, bool on the device; None once that is known.

    No thread waits for it: it is looked at when the bucket is needed again.
    """

    @classmethod
    def tried(cls, captured: Captured, expected: Tensor) -> _Kept:
        graph, vectors = captured
        graph.replay()
        found = vectors[: len(expected)]
        close = torch.isclose(found, expected, RELATIVE, ABSOLUTE, equal_nan=True).all()
        return cls(graph, vectors, close)

    def is_close(self) -> bool:
        """Whether it may be used, the first time waited for."""
        is_close = self.close is None or bool(self.close)
        if is_close:
            self.close = None
        return is_close


Agree = Callable[[bool], bool]
"""Whether something holds in every process that holds a part of the model, and so runs this."""


def cuda_graph_capture() -> Capture:
    """What captures CUDA graphs on the current stream, all in one pool of memory.

    They share it because no two run at a time and their results are fetched in between. When the
    last of them is gone so is the pool, and the next graph begins another.
    """
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
    pools: list[Any] = []  # the one in use

    def capture(work: Callable[[], Tensor]) -> tuple[CapturedGraph, Tensor]:
        if not graphs:
            pools[:] = [torch.cuda.graph_pool_handle()]
        (pool,) = pools
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do with the device meanwhile is no part of the capture.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            vectors = work()
            graph.capture_end()
        except BaseException:
            _abandon(graph, pool)
            raise
        graphs.add(graph)
        return graph, vectors

    return capture


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """End a capture that failed, so that the allocator knows of it too."""
    try:
        graph.capture_end()
    except RuntimeError:  # it says that the capture failed, which we know, and stops there
        logger.debug("a capture was abandoned", exc_info=True)
        _leave(pool)


def _leave(pool: Any) -> None:
    """What the end of a capture does with its pool, where torch did not do it."""
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    except (AttributeError, RuntimeError):  # private names; or it had done so
        logger.debug("a pool of graphs was left as it is", exc_info=True)


class CudaGraphs:
    """`forward(bucket, integers)`, captured where that pays. Used by one thread at a time.

    `integers` must be the same memory in every call: a graph reads where it was captured. A forward
    may write to memory of its own too, the same when it is done again.
    """

    def __init__(
        self,
        forward: Callable[[AnyBucket, Tensor], Tensor],
        capture: Capture,
        *,
        most_graphs: int = MOST_GRAPHS,
        agree: Agree | None = None,
        share: Share | None = None,
        plain_runs: Callable[[], PlainRuns] = AtOnce,
    ) -> None:
        """With processes that replay together, `agree` lets none capture what another cannot.

        While a `share` is on, what was captured is captured for it too, and replayed there.
        `plain_runs` say of a bucket when it is to be captured; processes must come to the same.
        """
        self._forward = forward
        self._capture = capture
        self._most_graphs = most_graphs
        self._agree = agree or bool
        self._share = share
        self._plain_runs = plain_runs
        self._seen: dict[AnyBucket, PlainRuns] = {}
        self._graphs: OrderedDict[AnyBucket, _Kept] = OrderedDict()
        # Of those, what was captured for the share too, or None where it cannot be.
        self._shared: dict[AnyBucket, _Kept | None] = {}
        self._pause = 0  # runs until capture is tried again
        self.reason_against: str | None = None
        """Why the model is not captured, once that is known."""

    def __len__(self) -> int:
        """Graphs kept."""
        return len(self._graphs)

    def at_hand(self, bucket: Bucket) -> Bucket:
        """The bucket, or a larger one that is captured where it is not, if the device would wait
        for its launches longer than it takes for rows of padding."""
        if bucket in self._graphs:
            return bucket
        larger = [
            other
            for other in self._graphs
            if isinstance(other, Bucket)
            and bucket.rows <= other.rows <= MOST_TIMES_ROWS * bucket.rows
            and bucket.texts <= other.texts
            and bucket.longest <= other.longest
            and other in self._seen
            and self._seen[other].waits_for_launches
        ]
        return min(larger, default=bucket)

    def run(self, bucket: AnyBucket, integers: Tensor, texts: int) -> Tensor:
        """The vectors of a bucket, of which the first `texts` mean something.

        A later call may overwrite them.
        """
        kept = self._graphs.get(bucket)
        if kept is not None and self._is_trusted(kept):
            self._graphs.move_to_end(bucket)
            return self._replayed(bucket, kept, integers, texts)
        if self._pause or self.reason_against is not None:
            self._pause = max(0, self._pause - 1)
            return self._forward(bucket, integers)
        runs = self._seen.get(bucket)
        if runs is None:
            runs = self._seen[bucket] = self._plain_runs()
        plain = runs.run(lambda: self._forward(bucket, integers))
        if runs.capture_pays:
            self._keep(bucket, integers, plain[:texts])
        return plain

    def _is_trusted(self, kept: _Kept) -> bool:
        """Whether a graph gives what the plain run gives; one that does not is the last."""
        if kept.close is None:
            return True
        close = self._attempt(kept.is_close)
        if close is None:
            return False
        if not self._agree(close):
            self._disable("a replay gave other vectors than the run it was captured from")
            return False
        return True

    def _replayed(self, bucket: AnyBucket, kept: _Kept, integers: Tensor, texts: int) -> Tensor:
        """What a replay gives, for the share's part of the device while that is on."""
        is_shared = self._share is not None and self._share.is_on
        if is_shared and (shared := self._trusted_for_share(bucket)) is not None:
            kept = shared
        kept.graph.replay()
        if is_shared and bucket not in self._shared:
            expected = kept.vectors[:texts]
            self._shared[bucket] = self._for_share(bucket, integers, expected)
        return kept.vectors

    def _trusted_for_share(self, bucket: AnyBucket) -> _Kept | None:
        shared = self._shared.get(bucket)
        if shared is None:
            return None
        try:
            if shared.is_close():
                return shared
            reason = "a replay gave other vectors"
        except Exception as error:
            reason = first_line(error)
        self._refuse_for_share(bucket, reason)
        self._shared[bucket] = None
        return None

    def _keep(self, bucket: AnyBucket, integers: Tensor, expected: Tensor) -> None:
        """Capture a bucket, to be verified on the batch that was just run."""
        made = self._attempt(lambda: self._capture(lambda: self._forward(bucket, integers)))
        if made is None:
            return
        kept = self._attempt(lambda: _Kept.tried(made, expected))
        if kept is None:
            return
        self._graphs[bucket] = kept
        if len(self._graphs) > self._most_graphs:
            oldest, _ = self._graphs.popitem(last=False)
            self._seen.pop(oldest, None)
            self._shared.pop(oldest, None)

    def _for_share(self, bucket: AnyBucket, integers: Tensor, expected: Tensor) -> _Kept | None:
        """The same for the share; None where it cannot be captured there."""
        assert self._share is not None
        try:
            made = self._share.capture(lambda: self._forward(bucket, integers))
            return _Kept.tried(made, expected)
        except Exception as error:  # no memory, perhaps; the whole device serves as well
            self._refuse_for_share(bucket, first_line(error))
            return None

    def _refuse_for_share(self, bucket: AnyBucket, reason: str) -> None:
        logger.debug("%s is not captured for a part of the device: %s", bucket, reason)

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
        self._graphs.clear()
        self._shared.clear()
        self._seen.clear()

    def __repr__(self) -> str:
        return f"CudaGraphs(graphs={len(self)}, seen={len(self._seen)})"
