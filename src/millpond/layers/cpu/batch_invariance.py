"""Which matrix products are batch-invariant on this processor: a row's bits do not depend on how
many rows there are.

A processor with matrix units (Intel's AMX) sums a long bfloat16 product in pieces, whose length
depends on how many rows there are and on how many threads, and so do a row's bits. Without
bfloat16 of its own it is the number of threads alone, in products that are not prepacked. No flag
says so: products are tried. Where one is not batch-invariant, several shorter ones are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ...cpu.openmp import limited_threads
from .onednn import multiply, pack

__all__ = ["PLAIN_PRODUCT", "invariant_columns", "is_invariant", "tried_size"]

# Measured with AMX, 1 to 96 threads and 16 to 1100 rows: every product is batch-invariant of up to
# 480 columns that are a multiple of what a matrix unit takes at once. Some others are, most are
# not.
MOST_COLUMNS = 480
COLUMNS_AT_ONCE = 32
# With these numbers of rows a product of 512 columns or more shows whether it is batch-invariant;
# it takes 64 outputs to show it, and more than 512 show no more. The AVX2 kernels of oneDNN before
# 3.12 (torch before 2.13) round the last rows in another way where their number is no multiple of
# 4 or 6, and divide the columns of many rows at other places.
ROW_COUNTS = (16, 32, 48, 80, 256, 1040)
FEW_ROW_COUNTS = (4, 8, 12, 20, 28)
FEWEST_COLUMNS_TRIED = 512
OUTPUTS_TRIED = (64, 512)
DISTINCT_ROWS = 61
PLAIN_PRODUCT = (1024, 256)
"""Columns and outputs that speak for whatever a model multiplies with besides prepacked layers."""


def invariant_columns(columns: int, outputs: int, dtype: torch.dtype) -> int | None:
    """Columns of each piece of a prepacked product that is not batch-invariant as it is.

    A multiple of what a matrix unit takes; None where the whole product is.
    """
    if dtype != torch.bfloat16 or is_invariant(*tried_size(columns, outputs), dtype):
        return None
    pieces = -(-columns // MOST_COLUMNS)
    return whole_units(-(-columns // pieces))


def whole_units(columns: int) -> int:
    """The columns, and those that are missing to a multiple of what a matrix unit takes."""
    return -(-columns // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE


def tried_size(columns: int, outputs: int) -> tuple[int, int]:
    """Columns and outputs of the product that is tried for one of these."""
    if columns > MOST_COLUMNS or columns % COLUMNS_AT_ONCE:
        columns = max(FEWEST_COLUMNS_TRIED, whole_units(columns))
    fewest, most = OUTPUTS_TRIED
    return columns, min(max(outputs, fewest), most)


@cache  # what is found is the processor's, and the same for every model
@torch.no_grad()
def is_invariant(
    columns: int,
    outputs: int,
    dtype: torch.dtype,
    threads: tuple[int, ...] = (1,),
    *,
    prepacked: bool = True,
    few_rows: bool = False,
) -> bool:
    """Whether a product gives a row identical bits for several numbers of rows and threads.

    From 16 rows on, or with `few_rows` from 4 on.

    Every sum is one of pairs that cancel, in a mixed order, so what is left of it is rounding:
    summed in another order, most elements differ.
    """
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(-(-columns // 2) * 2, generator=random)[:columns]

    def cancelling(count: int, sign: int) -> Tensor:
        half = torch.randn(DISTINCT_ROWS, -(-columns // 2), generator=random)
        rows = torch.cat([half, sign * half], dim=1)[:, order].to(dtype)
        return rows.repeat(-(-count // DISTINCT_ROWS), 1)[:count]

    product = _product(cancelling(outputs, -1), prepacked)
    rows = cancelling(max(ROW_COUNTS), 1)
    counts = FEW_ROW_COUNTS * few_rows + ROW_COUNTS
    found = []
    for threads_here in threads:
        with limited_threads(threads_here):
            found += [product(rows[:count]) for count in counts]
    return all(torch.equal(each, found[-1][: len(each)]) for each in found)


def _product(weight: Tensor, prepacked: bool) -> Callable[[Tensor], Tensor]:
    if not prepacked:
        return lambda rows: functional.linear(rows, weight)
    packed = (pack(weight),)
    return lambda rows: multiply(rows, packed, None, "none")
