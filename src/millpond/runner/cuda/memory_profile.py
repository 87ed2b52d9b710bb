"""How many rows a batch may have on a GPU, by what a row was seen to take.

It runs one forward pass and reads the allocator's counters; it plans no batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...attention.packed import PackedSequences
from ...errors import summary
from ...model.pooling_model import PooledRows, PoolingModel
from ..memory import DeviceMemory, MemoryBudget
from .bucketed_forward import forward_bucket, is_bucketed
from .buckets import Bucket

__all__ = ["probe_of", "tokens_that_fit"]

logger = logging.getLogger("millpond")


PROBE = Bucket(4096, 64, 512)


COPIES = 2  # a recorded forward pass keeps memory of its own beside that of a plain one


FEWEST_ROWS, MOST_ROWS = 256, 1 << 30


def tokens_that_fit(
    models: Sequence[PoolingModel],
    device: torch.device,
    memory: MemoryBudget,
    *,
    wanted: int | Literal["auto"],
    most: int,
    reserved: int,
) -> int:
    """Tokens of the largest batch: `most` or, of all routes, what the memory has room for.

    `reserved` bytes of it are for something else. What is `wanted` is cut only where the memory is
    limited, too. Raises `InvalidOption` for a limit that the weights alone exceed.
    """
    room = memory.room_for_batches(DeviceMemory.of(device, models)) - reserved
    if wanted != "auto" and not memory.is_limited:
        return wanted
    needs = [_bytes_per_row(p, device) for p in models if not p.is_static]
    tokens = most if wanted == "auto" else wanted
    fitting = rows_within(room, max(needs, default=0.0)) - 1
    if wanted != "auto" and fitting < wanted:
        logger.info("max_batch_tokens=%d is more than memory allows: %d", wanted, fitting)
    return min(tokens, fitting)


def rows_within(room: int, bytes_per_row: float) -> int:
    """Rows that fit in so many bytes; any number where a row takes none that we know of."""
    return max(FEWEST_ROWS, int(room / bytes_per_row)) if bytes_per_row else MOST_ROWS


@torch.inference_mode()
def _bytes_per_row(pipeline: PoolingModel, device: torch.device) -> float:
    forward, rows = probe_of(pipeline, device)
    copies = COPIES if is_bucketed(pipeline, device) else 1
    try:
        forward()  # what is made once is made now
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        forward()
    except Exception as error:  # a model that takes no texts of this length will say so again
        logger.info("what a batch takes is not known: %s", summary(error))
        return 0.0
    return copies * (torch.cuda.max_memory_allocated(device) - before) / rows


def probe_of(pipeline: PoolingModel, device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """A forward pass like that of a large batch, and its rows."""
    if is_bucketed(pipeline, device):
        integers = torch.zeros(sum(PROBE.sizes), dtype=torch.int64, device=device)
        return lambda: forward_bucket(pipeline, PROBE, integers), PROBE.rows
    length = min(PROBE.longest, pipeline.tokenizer.max_length or PROBE.longest)
    texts = PROBE.rows // length
    lengths = torch.full((texts,), length, device=device)
    places = PooledRows(torch.arange(texts, device=device) * length, lengths, lengths * 0)
    ids = torch.zeros(texts, length, dtype=torch.int64, device=device)
    if pipeline.pad_to is not None:
        return lambda: pipeline.padded(ids, torch.ones_like(ids), places), ids.numel()
    positions = torch.arange(length, device=device).repeat(texts)

    def packed() -> Tensor:
        sequences = PackedSequences.of(np.full(texts, length))
        return pipeline.packed(ids.flatten(), positions, sequences, places)

    return packed, ids.numel()
