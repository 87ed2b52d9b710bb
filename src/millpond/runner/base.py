"""`ModelRunner`: what the engine asks of whoever computes its batches.

It knows no tensors and no devices; `runner` has the one that runs models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..model.info import RouteInfo
from ..scheduler.batch import Batch
from ..scheduler.batch_shape import BatchShape
from ..scheduler.prefix_cache import PrefixCacheConfig
from .limits import Limits

__all__ = ["BatchHandle", "FloatArray", "ModelRunner"]

FloatArray = npt.NDArray[np.float32]


class BatchHandle(Protocol):
    """A launched batch."""

    @property
    def padded_tokens(self) -> int:
        """Tokens computed beside those of the texts."""


class ModelRunner(Protocol):
    """What the engine's loop asks of a runner; tests bring their own."""

    @property
    def routes(self) -> Sequence[RouteInfo]:
        """The ways through the model; a request's `route` is an index into them."""

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
    def shapes(self) -> Sequence[BatchShape]:
        """How texts of each route stand in a batch."""

    def can_run_inline(self, tokens: int) -> bool:
        """Whether a caller's thread may launch a text of so many tokens."""

    @property
    def prefix_cache_config(self) -> PrefixCacheConfig | None:
        """Room for a prefix cache, or None where there is none."""

    def launch(self, batch: Batch) -> BatchHandle:
        """Start a forward pass, on any of the workers' threads."""

    def collect(self, handle: BatchHandle) -> FloatArray:
        """Wait for its vectors: float32 `[texts, dimension]`, in the order of the segments."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch could succeed where this error was raised."""

    def is_fatal(self, error: BaseException) -> bool:
        """Whether no batch can succeed after this error."""

    def free_memory(self) -> None:
        """Give cached device memory back after running out of it."""
