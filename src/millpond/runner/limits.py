"""How many tokens a batch may have, by device and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..model.pooling_model import PoolingModel
from .cuda.memory_profile import tokens_that_fit
from .memory import MemoryBudget

__all__ = ["Limits"]

# On a CPU, batches beyond the caches are slower; a GPU wants them large; a table has no arithmetic.
BATCH_TOKENS = {"cpu": 1024, "cuda": 32_767, "mps": 8_192, "static": 65_536}


# With narrow layers a CPU's caches hold more. Measured with AMX in bfloat16: 2,048 tokens are 1.06
# to 1.2 times as fast as 1,024 with 384 columns, 0.77 times with 768; in int8 1.08 and 0.97 times.
NARROW_BATCH_TOKENS, NARROW_COLUMNS = 2048, 384


# Many threads in int8 wait for each other in Python, between products: with 384 columns 16 of them
# do 1.3 times as much with 4,096 tokens as with 2,048, and no more with 8,192; in bfloat16 they do
# not, and two do not.
MANY_THREADS, MANY_THREADS_TIMES = 8, 2


# Fewer take about as long.
MIN_BATCH_TOKENS = {"cuda": 4096, "mps": 512}


# On CUDA with `batch_invariant`: every pass has these rows, and a lone query pays for them too.
DETERMINISTIC_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a runner wants at a time."""

    max_batch_tokens: int
    """Most tokens in one batch."""
    min_batch_tokens: int
    """Tokens that take as long as any fewer: no batch is cut below them for speed."""
    depth: int = 1
    """Batches that one worker's place may have launched before the first is collected."""
    workers: int = 1
    """Batches that run side by side, launched and collected by a thread each."""
    query_workers: int = 0
    """Batches of nothing but queries that run beside those."""


def max_batch_tokens_for(
    models: Sequence[PoolingModel],
    device: torch.device,
    memory: MemoryBudget,
    *,
    wanted: int | Literal["auto"],
    reserved: int,
) -> int:
    static = all(pipeline.is_static for pipeline in models)
    most = BATCH_TOKENS["static" if static else device.type]
    if device.type == "cpu" and not static:
        most = _cpu_batch_tokens(models)
    if device.type != "cuda":
        return most if wanted == "auto" else wanted
    return tokens_that_fit(models, device, memory, wanted=wanted, most=most, reserved=reserved)


def _cpu_batch_tokens(models: Sequence[PoolingModel]) -> int:
    if any(pipeline.encoder.width > NARROW_COLUMNS for pipeline in models):
        return BATCH_TOKENS["cpu"]
    in_int8 = all(pipeline.dtype_name == "int8" for pipeline in models)
    many = in_int8 and torch.get_num_threads() >= MANY_THREADS
    return NARROW_BATCH_TOKENS * (MANY_THREADS_TIMES if many else 1)
