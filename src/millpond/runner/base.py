"""`ModelRunner`: what the engine asks of what computes its batches.

It knows no tensors and no devices, and nothing of it hands any over, so a runner may as well stand
for a model in another process. `model_runner` has the one that runs models in this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..model.info import RouteInfo
from ..outputs import Rows
from ..scheduler.batch import Batch, BatchShape
from ..scheduler.prefix_cache import PrefixCacheConfig
from .limits import Limits

__all__ = ["BatchHandle", "ModelRunner"]


class BatchHandle(Protocol):
    """A launched batch, to be collected by the runner that launched it."""

    @property
    def padded_tokens(self) -> int:
        """Tokens computed beside those of the texts."""


class ModelRunner(Protocol):
    """What the engine asks of a runner; tests bring their own.

    What does not change is said by properties. All methods may be called by any of the engine's
    threads, several at a time.
    """

    @property
    def device_name(self) -> str:
        """Where it runs."""

    @property
    def dtype_name(self) -> str:
        """In which precision."""

    @property
    def limits(self) -> Limits:
        """How large its batches may be, and how many run at a time."""

    @property
    def routes(self) -> Sequence[RouteInfo]:
        """The ways through the model; a request's `route` is an index into them."""

    @property
    def shapes(self) -> Sequence[BatchShape]:
        """How texts of each route stand in a batch."""

    @property
    def prefix_cache_config(self) -> PrefixCacheConfig | None:
        """Room for a prefix cache, or None where there is none."""

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that it runs in; none where that is this one."""

    def can_run_inline(self, batch: Batch) -> bool:
        """Whether a caller's thread may launch this batch."""

    def launch(self, batch: Batch) -> BatchHandle:
        """Start a forward pass. It may return before the pass is done."""

    def collect(self, handle: BatchHandle) -> Rows:
        """Wait for its result: float32 `[texts, dimension]`, a row a text in the batch's order.

        A route that gives several rows a text gives `RaggedRows` of that width.
        """

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch could succeed where this error was raised."""

    def is_fatal(self, error: BaseException) -> bool:
        """Whether no batch can succeed after this error."""

    def free_memory(self) -> None:
        """Give cached device memory back after running out of it."""

    def look_for_queries(self, has_waiting: Callable[[], bool]) -> None:
        """`has_waiting()` says on any thread whether a query has arrived that is in no batch."""

    def delivered(self) -> None:
        """What came of the calling thread's last batch is with its callers."""

    def tell_when_lost(self, tell: Callable[[Exception], object]) -> None:
        """Call `tell` with an error that is fatal if there comes to be one while it runs nothing.

        Once, on any thread.
        """

    def close(self, *, wait: bool = True) -> None:
        """Let go of what is outside of this process. Batches that it runs there fail.

        Without `wait` it is only asked for. Twice is as good as once.
        """
