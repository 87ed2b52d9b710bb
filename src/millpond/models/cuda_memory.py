"""How many rows a batch may have on a GPU, by what a row was seen to take.

It runs one forward pass and reads the allocator's counters; it plans no batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..errors import InvalidOption
from .cuda_buckets import Bucket
from .cuda_forward import forward_bucket, is_bucketed
from .pipeline import Pipeline
from .transformer import Transformer

__all__ = ["MemoryBudget", "rows_that_fit"]

PROBE = Bucket(4096, 64, 512)
GUEST_SHARE = 0.5  # of what is free, where nothing was asked for
COPIES = 2  # a recorded forward pass keeps memory of its own beside that of a plain one
FEWEST_ROWS = 256


@dataclass(frozen=True)
class MemoryBudget:
    """What the engine may fill, weights included; None and None for a good guest's half."""

    share: float | None = None
    size: int | None = None

    def room(self, *, free: int, total: int, weights: int) -> int:
        """Bytes left for batches, beside weights that are loaded. Raises `InvalidOption`."""
        if self.share is None and self.size is None:
            return int(free * GUEST_SHARE)
        limit = self.size if self.size is not None else int(total * (self.share or 0))
        if limit <= weights:
            raise InvalidOption(
                f"the memory allowed is {limit:,} bytes and the weights alone take {weights:,}; "
                "raise memory_bytes or memory_utilization"
            )
        return min(limit - weights, free)


def rows_that_fit(
    pipelines: Sequence[Pipeline], device: torch.device, budget: MemoryBudget
) -> int | None:
    """Rows of the largest batch within the budget, of all routes; None where none is packed."""
    free, total = torch.cuda.mem_get_info(device)
    room = budget.room(free=free, total=total, weights=sum(_weights(pipelines)))
    needs = [_bytes_per_row(p, device) for p in pipelines if is_bucketed(p, device)]
    if not needs:
        return None
    return rows_within(room, max(needs))


def _weights(pipelines: Sequence[Pipeline]) -> Iterator[int]:
    """Bytes of each transformer, one that routes share counted once."""
    encoders = [p.encoder for p in pipelines if isinstance(p.encoder, Transformer)]
    for model in {id(encoder.model): encoder.model for encoder in encoders}.values():
        yield sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def rows_within(room: int, bytes_per_row: float) -> int:
    """Rows that fit in so many bytes."""
    return max(FEWEST_ROWS, int(room / (COPIES * bytes_per_row)))


@torch.inference_mode()
def _bytes_per_row(pipeline: Pipeline, device: torch.device) -> float:
    integers = torch.zeros(sum(PROBE.sizes), dtype=torch.int64, device=device)
    forward_bucket(pipeline, PROBE, integers)  # what is made once is made now
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    forward_bucket(pipeline, PROBE, integers)
    return (torch.cuda.max_memory_allocated(device) - before) / PROBE.rows
