"""Triton kernels on what a product of several layers at once gives: queries and keys, and gates.

A decoder's queries, keys and values come out of one product, side by side in a row, and so do the
two halves of its gated layers. These kernels read and write them there, compute in float32, and
give a row identical bits whatever other rows there are.

Import this module only where there is a use for it, as `decoder`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..float8 import LARGEST, Float8Rows, empty_float8

__all__ = ["gelu_float8", "norm_and_rotate", "silu_times_joined", "silu_times_joined_float8"]

MOST_WIDTH = 16_384  # of a row, which a program holds in registers
NUMBERS = 2048  # that a program works on at a time, about


@triton.jit
def _norm_and_rotate(
    rows: tl.tensor,
    query_weight: tl.tensor,
    key_weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    row_stride: tl.tensor,
    epsilon: tl.tensor,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    NORMS: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    column = tl.arange(0, COLUMNS)
    is_column = column < HALF
    inside = (head < HEADS)[:, None] & is_column[None, :]
    places = rows + token * row_stride + head[:, None] * (2 * HALF) + column[None, :]
    a = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(places + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
        scale = tl.rsqrt(squares / (2 * HALF) + epsilon)[:, None]
        is_query = (head < QUERIES)[:, None]
        query_a = tl.load(query_weight + column, mask=is_column, other=0.0).to(tl.float32)
        query_b = tl.load(query_weight + HALF + column, mask=is_column, other=0.0).to(tl.float32)
        key_a = tl.load(key_weight + column, mask=is_column, other=0.0).to(tl.float32)
        key_b = tl.load(key_weight + HALF + column, mask=is_column, other=0.0).to(tl.float32)
        a = a * scale * tl.where(is_query, query_a[None, :], key_a[None, :])
        b = b * scale * tl.where(is_query, query_b[None, :], key_b[None, :])
    at = token * (2 * HALF) + column
    cos_a = tl.load(cos + at, mask=is_column, other=0.0).to(tl.float32)[None, :]
    cos_b = tl.load(cos + at + HALF, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sin_a = tl.load(sin + at, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sin_b = tl.load(sin + at + HALF, mask=is_column, other=0.0).to(tl.float32)[None, :]
    tl.store(places, a * cos_a - b * sin_a, mask=inside)
    tl.store(places + HALF, b * cos_b + a * sin_b, mask=inside)


def norm_and_rotate(
    joined: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: tuple[int, int],
    norms: tuple[Tensor, Tensor, float] | None,
) -> None:
    """Turn the queries and keys at the beginning of rows `[n, …]`, in place, after their norms.

    Angles are `[n, size]`. `heads` are those of queries and of keys, `norms` the weights for the
    RMS norms of both, `[size]`, and the epsilon; None where the model has none.
    """
    tokens, size = cos.shape
    if sin.shape != cos.shape or size % 2 or len(joined) != tokens or joined.stride(1) != 1:
        raise ValueError("it turns packed rows by an angle for each token and number")
    query_weight, key_weight, epsilon = norms or (cos, cos, 0.0)
    columns = triton.next_power_of_2(size // 2)
    at_once = max(1, min(triton.next_power_of_2(sum(heads)), NUMBERS // columns))
    if tokens:
        _norm_and_rotate[(tokens, triton.cdiv(sum(heads), at_once))](
            joined,
            query_weight,
            key_weight,
            cos.contiguous(),
            sin.contiguous(),
            joined.stride(0),
            epsilon,
            QUERIES=heads[0],
            HEADS=sum(heads),
            HALF=size // 2,
            COLUMNS=columns,
            AT_ONCE=at_once,
            NORMS=norms is not None,
        )


@triton.jit
def _silu_times_joined(
    joined: tl.tensor,
    out: tl.tensor,
    WIDTH: tl.constexpr,
    NUMBERS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * NUMBERS + tl.arange(0, NUMBERS)
    inside = column < WIDTH
    read = joined + row * (2 * WIDTH) + column
    x = tl.load(read, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(read + WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, x * tl.sigmoid(x) * y, mask=inside)


def silu_times_joined(joined: Tensor) -> Tensor:
    """`silu(gate) * up` `[n, width]` of gates and what they are for, `[n, 2 * width]`."""
    rows, width = _halves(joined)
    out = joined.new_empty(rows, width)
    if rows:
        at_once = min(NUMBERS, triton.next_power_of_2(width))
        _silu_times_joined[(rows, triton.cdiv(width, at_once))](
            joined, out, WIDTH=width, NUMBERS=at_once
        )
    return out


@triton.jit
def _silu_times_joined_float8(
    joined: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < WIDTH
    read = joined + row * (2 * WIDTH) + column
    x = tl.load(read, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(read + WIDTH, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.sigmoid(x) * y
    largest = tl.maximum(tl.max(tl.abs(y), axis=0), 1e-12)
    tl.store(values + row * WIDTH + column, (y * (LARGEST / largest)).to(tl.float8e4nv), inside)
    tl.store(scales + row, largest / LARGEST)


def silu_times_joined_float8(joined: Tensor) -> Float8Rows:
    """The same in float8."""
    rows, width = _halves(joined)
    out = empty_float8(joined, width)
    if rows:
        columns = triton.next_power_of_2(width)
        _silu_times_joined_float8[(rows,)](
            joined, *out, WIDTH=width, COLUMNS=columns, LARGEST=LARGEST, num_warps=_warps(columns)
        )
    return out


def _halves(joined: Tensor) -> tuple[int, int]:
    rows, both = joined.shape
    if both % 2 or both > 2 * MOST_WIDTH or not joined.is_contiguous():
        raise ValueError("it takes pairs of rows side by side")
    return rows, both // 2


@triton.jit
def _gelu_float8(
    rows: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < WIDTH
    x = tl.load(rows + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    largest = tl.maximum(tl.max(tl.abs(y), axis=0), 1e-12)
    tl.store(values + row * WIDTH + column, (y * (LARGEST / largest)).to(tl.float8e4nv), inside)
    tl.store(scales + row, largest / LARGEST)


def gelu_float8(rows: Tensor) -> Float8Rows:
    """The exact GELU of rows `[n, width]` in float8."""
    count, width = rows.shape
    if width > MOST_WIDTH or not rows.is_contiguous():
        raise ValueError(f"rows of {width} that lie end to end are needed, of {MOST_WIDTH} at most")
    out = empty_float8(rows)
    if count:
        columns = triton.next_power_of_2(width)
        _gelu_float8[(count,)](
            rows, *out, WIDTH=width, COLUMNS=columns, LARGEST=LARGEST, num_warps=_warps(columns)
        )
    return out


def _warps(columns: int) -> int:
    return min(16, max(1, columns // 512))
