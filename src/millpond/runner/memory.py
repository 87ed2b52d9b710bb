"""What of a device's memory an engine may take: `MemoryBudget`, and what there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InvalidOption
from ..model.pooling_model import PoolingModel
from ..model.transformer import Transformer

__all__ = ["DeviceMemory", "MemoryBudget", "weight_bytes"]

GUEST_SHARE = 0.5  # of what is free: for batches, where nothing was asked for


GUEST_PREFIX_SHARE = 0.1  # and for cached prefixes


PREFIX_SHARE = 0.5  # of what a budget leaves beside the weights


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device's memory, and those among them that the weights have taken.

    A `total` of 0 says that nothing is known of it.
    """

    free: int
    total: int
    weights: int


@dataclass(frozen=True)
class MemoryBudget:
    """What the engine may fill, weights included; None and None: half of what is free at start."""

    memory: DeviceMemory
    share: float | None = None
    size: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether the user set a limit."""
        return self.share is not None or self.size is not None

    def room_for_batches(self) -> int:
        """Bytes left for batches, beside weights that are loaded. Raises `InvalidOption`."""
        left = self._left()
        return int(self.memory.free * GUEST_SHARE) if left is None else left

    def room_for_prefixes(self) -> int:
        """Bytes for a cache of prefixes. Raises `InvalidOption`."""
        left = self._left()
        return int(self.memory.free * GUEST_PREFIX_SHARE if left is None else left * PREFIX_SHARE)

    def _left(self) -> int | None:
        if not self.is_limited:
            return None
        memory = self.memory
        is_known = memory.total > 0
        if self.size is None and not is_known:
            raise InvalidOption(
                "memory_utilization is a share of the device's memory, which cannot be asked for "
                "here; set memory_bytes"
            )
        limit = self.size if self.size is not None else int(memory.total * (self.share or 0))
        if limit <= memory.weights:
            raise InvalidOption(
                f"the memory allowed is {limit:,} bytes and the weights alone take "
                f"{memory.weights:,}; raise memory_bytes or memory_utilization"
            )
        left = limit - memory.weights
        return min(left, memory.free) if is_known else left


def weight_bytes(models: Sequence[PoolingModel]) -> int:
    """Bytes of all transformers, one that routes share counted once."""
    encoders = [model.encoder for model in models if isinstance(model.encoder, Transformer)]
    transformers = {id(encoder.model): encoder.model for encoder in encoders}.values()
    return sum(t.nbytes for model in transformers for t in (*model.parameters(), *model.buffers()))
