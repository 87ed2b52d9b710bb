"""How many rows a batch may have on a GPU, by what a row was seen to take.

It runs a forward pass and sees what the allocator takes for it; it plans no batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from ...attention.packed import PackedSequences
from ...errors import summary
from ...model.pooling_model import PooledRows, PoolingModel
from ...pooler.sparse import SparseRows
from ..memory import MemoryBudget
from .bucketed_forward import forward_bucket, is_bucketed
from .buckets import Bucket

__all__ = ["probe_of", "reserved_bytes", "tokens_that_fit"]

logger = logging.getLogger("millpond")


PROBE = Bucket(4096, 64, 512)


FEWEST_ROWS, MOST_ROWS = 256, 1 << 30


def tokens_that_fit(
    models: Sequence[PoolingModel],
    device: torch.device,
    budget: MemoryBudget,
    *,
    wanted: int,
    is_fixed: bool,
    reserved: int,
    captures: int = 1,
) -> int:
    """Tokens of the largest batch: those `wanted` or, of all routes, what memory has room for.

    What is captured keeps memory of its own beside that of a plain pass, as often as there are
    `captures` of it, and `reserved` bytes are for something else. With `is_fixed` the tokens are
    cut only where the memory is limited, too. Raises `InvalidOption` for a limit that the weights
    alone exceed.
    """
    room = budget.room_for_batches() - reserved
    if is_fixed and not budget.is_limited:
        return wanted
    needs = [_bytes_per_row(model, device, captures) for model in models if not model.is_static]
    fitting = rows_within(room, max(needs, default=0.0)) - 1
    if is_fixed and fitting < wanted:
        logger.info("max_batch_tokens=%d is more than memory allows: %d", wanted, fitting)
    return min(wanted, fitting)


def rows_within(room: int, bytes_per_row: float) -> int:
    """Rows that fit in that many bytes; any number where a row takes none that we know of."""
    return max(FEWEST_ROWS, int(room / bytes_per_row)) if bytes_per_row else MOST_ROWS


@torch.inference_mode()
def _bytes_per_row(pipeline: PoolingModel, device: torch.device, captures: int) -> float:
    forward, rows = probe_of(pipeline, device)
    copies = 1 + captures if is_bucketed(pipeline, device) else 1
    try:
        forward()  # what is made once is made now
        needs = reserved_bytes(forward, device)
    except Exception as error:  # a model that takes no texts of this length will say so again
        logger.info("what a batch takes is not known: %s", summary(error))
        return 0.0
    return copies * needs / rows


def reserved_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Device memory that torch's allocator takes for some work, given back afterwards.

    The work's tensors are in a pool of their own, whose size is read: the allocator's own peak
    is the process's, and a caller who measures there would lose what was measured.
    """
    with suppress(torch.OutOfMemoryError):
        return _pool_bytes(work, device)
    torch.cuda.empty_cache()  # for a pool the allocator gives nothing back of what it keeps
    return _pool_bytes(work, device)


def _pool_bytes(work: Callable[[], object], device: torch.device) -> int:
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool, device):
        work()
    segments = pool.snapshot()  # type: ignore[no-untyped-call]
    return sum(segment["total_size"] for segment in segments)


def probe_of(
    pipeline: PoolingModel, device: torch.device
) -> tuple[Callable[[], Tensor | SparseRows], int]:
    """A forward pass like that of a large batch, and its rows."""
    if is_bucketed(pipeline, device):
        integers = torch.zeros(sum(PROBE.sizes), dtype=torch.int64, device=device)
        return lambda: forward_bucket(pipeline, PROBE, integers), PROBE.rows
    length = min(PROBE.longest, pipeline.tokenizer.max_length or PROBE.longest)
    texts = PROBE.rows // length
    lengths = torch.full((texts,), length, device=device)
    starts = torch.arange(texts, device=device) * length
    kept = torch.arange(texts * length, device=device) if pipeline.head.keeps_rows else None
    places = PooledRows(starts, lengths, lengths * 0, kept)
    ids = torch.zeros(texts, length, dtype=torch.int64, device=device)
    if pipeline.pad_to is not None:
        return lambda: pipeline.padded(ids, torch.ones_like(ids), places), ids.numel()
    positions = torch.arange(length, device=device).repeat(texts)

    def packed() -> Tensor | SparseRows:
        sequences = PackedSequences.of(np.full(texts, length))
        return pipeline.packed(ids.flatten(), positions, sequences, places)

    return packed, ids.numel()
