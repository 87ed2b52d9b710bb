"""`Limits`: how many tokens a batch may have, and how many batches run, by device and model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]

# On a CPU, batches beyond the caches are slower; a GPU wants them large; a table has no arithmetic.
CPU_BATCH_TOKENS = 1024
CUDA_BATCH_TOKENS = 32_767
MPS_BATCH_TOKENS = 8_192
STATIC_BATCH_TOKENS = 65_536


# With narrow layers a CPU's caches hold more. Measured with AMX in bfloat16: 2,048 tokens are 1.06
# to 1.2 times as fast as 1,024 with 384 columns, 0.77 times with 768; in int8 1.08 and 0.97 times.
NARROW_BATCH_TOKENS, NARROW_COLUMNS = 2048, 384


# Many threads in int8 wait for each other in Python, between products: with 384 columns 16 of them
# do 1.3 times as much with 4,096 tokens as with 2,048, and no more with 8,192; in bfloat16 they do
# not, and two do not.
MANY_THREADS, MANY_THREADS_TIMES = 8, 2


# Fewer take about as long.
CPU_MIN_BATCH_TOKENS = 64
CUDA_MIN_BATCH_TOKENS = 4096
MPS_MIN_BATCH_TOKENS = 512


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
    queries_apart: bool = False
    """Whether queries run on the query workers alone, on the same device and in its order."""
    bulk_multiprocessors: int | None = None
    """How many of a GPU's bulk batches have while queries come in; None where they have all."""


def cpu_batch_tokens(*, columns: int, in_int8: bool, threads: int) -> int:
    """Most tokens for a transformer whose rows have that many columns, on that many threads."""
    if columns > NARROW_COLUMNS:
        return CPU_BATCH_TOKENS
    many = in_int8 and threads >= MANY_THREADS
    return NARROW_BATCH_TOKENS * (MANY_THREADS_TIMES if many else 1)
