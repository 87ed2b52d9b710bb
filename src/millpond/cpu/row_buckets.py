"""How many rows a pass on a CPU has: as many as its tokens, filled up to one of few numbers.

For every number of rows that a matrix product has, oneDNN makes machine code of its own, which for
a thousand rows takes about as long as running it, and remembers only so much of it. Batches of
texts as they come have hundreds of different sizes; filled up, 64 of them up to 2,048 rows.
"""

from __future__ import annotations

__all__ = ["FEWEST_ROWS", "whole_rows"]

FEWEST_ROWS = 16  # from this many on, products are batch-invariant


def whole_rows(rows: int) -> int:
    """The next multiple of `FEWEST_ROWS`, or of a 32nd of the next power of two if that is more."""
    step = max(FEWEST_ROWS, (1 << (rows - 1).bit_length()) // 32)
    return -(-rows // step) * step
