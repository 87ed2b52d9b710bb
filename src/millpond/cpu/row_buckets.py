"""How many rows a pass on a CPU has: as many as its tokens, filled up to one of few numbers.

For every number of rows that a matrix product has, oneDNN makes machine code of its own, which for
a thousand rows takes about as long as running it, and remembers only so much of it. Batches of
texts as they come have hundreds of different sizes; filled up, 64 of them up to 2,048 rows, and a
few more where short ones may have less than 16 rows.
"""

from __future__ import annotations

from functools import cache

__all__ = ["FEWEST_ROWS", "FEW_ROWS", "block_rows", "whole_rows"]

FEWEST_ROWS = 16  # from this many on, products are batch-invariant
FEW_ROWS = 4  # on many processors from this many on, which is tried; a short query costs less

# Of a product that ingestion has begun about 3 ms are left at most, in bfloat16 on a Zen 4, before
# it yields to a query. Blocks of half as many rows cost ingestion 2.5 % instead of 1, and of fewer
# than 128 the weights are read too often.
BLOCK_OPERATIONS = 6e8
FEWEST_BLOCK_ROWS = 128


@cache
def whole_rows(rows: int, fewest: int = FEWEST_ROWS) -> int:
    """The next multiple of a step: `fewest`, or more where that fills up by an eighth at most.

    From 16 on that is 16, or a 32nd of the next power of two if that is more.
    """
    power = 1 << (rows - 1).bit_length()
    step = max(fewest, min(FEWEST_ROWS, power // 8), power // 32)
    return -(-rows // step) * step


def block_rows(weights: int) -> int:
    """Rows to multiply with that number of weights between two moments to yield to a query."""
    rows = int(BLOCK_OPERATIONS) // (2 * weights)
    return max(FEWEST_BLOCK_ROWS, rows // FEWEST_ROWS * FEWEST_ROWS)
