"""How many rows a batch may have on a GPU, by what a row was seen to take.

It runs one forward pass and reads the allocator's counters; it plans no batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .cuda_buckets import Bucket
from .cuda_forward import forward_bucket, is_bucketed
from .memory import DeviceMemory, MemoryBudget
from .pipeline import Pipeline

__all__ = ["rows_that_fit"]

PROBE = Bucket(4096, 64, 512)
COPIES = 2  # a recorded forward pass keeps memory of its own beside that of a plain one
FEWEST_ROWS = 256


def rows_that_fit(
    pipelines: Sequence[Pipeline],
    device: torch.device,
    budget: MemoryBudget,
    *,
    reserved: int = 0,
) -> int | None:
    """Rows of the largest batch within the budget, of all routes; None where none is packed.

    `reserved` bytes of it are for something else.
    """
    room = budget.room_for_batches(DeviceMemory.of(device, pipelines)) - reserved
    needs = [_bytes_per_row(p, device) for p in pipelines if is_bucketed(p, device)]
    if not needs:
        return None
    return rows_within(room, max(needs))


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
