"""Triton kernels for what a GPU spends on its memory between the products of a decoder.

Each reads its input once and writes its result once, computes in float32 and rounds at the end, and
gives a row identical bits whatever other rows there are. torch brings Triton along where it is
built for CUDA; Triton needs a C compiler at hand when a kernel is first used. Import this module
only where there is a use for it, and expect any error.

Triton reads the annotations of kernels, too, and knows no names but its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["rms_norm", "rotate", "silu_times"]

MOST_WIDTH = 16_384  # of a row, which a program holds in registers
NUMBERS = 2048  # that a program works on at a time, about


# What differs from batch to batch must not make another kernel: that would take a second, and
# cannot be done while a graph is captured.
@triton.jit(do_not_specialize=["count"])
def _rms_norm(
    rows: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    epsilon: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = (row < count)[:, None] & (column < WIDTH)[None, :]
    places = row[:, None] * WIDTH + column[None, :]
    x = tl.load(rows + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + epsilon)
    w = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + places, x * scale[:, None] * w[None, :], mask=inside)


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`[…, width]` rows by the root of their mean square, times `weight` `[width]`."""
    width = len(weight)
    if width > MOST_WIDTH:
        raise ValueError(f"a row of {width} is too wide")
    rows = rows.contiguous()
    out = torch.empty_like(rows)
    columns = triton.next_power_of_2(width)
    at_once = max(1, NUMBERS // columns)
    count = rows.numel() // width
    if count:
        _rms_norm[(triton.cdiv(count, at_once),)](
            rows, weight, out, count, epsilon, WIDTH=width, COLUMNS=columns, ROWS=at_once
        )
    return out


@triton.jit(do_not_specialize=["heads"])
def _rotate(
    rows: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    heads: tl.tensor,
    row_head: tl.tensor,
    row_token: tl.tensor,
    out_head: tl.tensor,
    out_token: tl.tensor,
    cos_token: tl.tensor,
    sin_token: tl.tensor,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    is_column = column < HALF
    inside = (head < heads)[:, None] & is_column[None, :]
    at = cos + token * cos_token + column
    cos_a = tl.load(at, mask=is_column, other=0.0).to(tl.float32)[None, :]
    cos_b = tl.load(at + HALF, mask=is_column, other=0.0).to(tl.float32)[None, :]
    at = sin + token * sin_token + column
    sin_a = tl.load(at, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sin_b = tl.load(at + HALF, mask=is_column, other=0.0).to(tl.float32)[None, :]
    read = rows + token * row_token + head[:, None] * row_head + column[None, :]
    a = tl.load(read, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(read + HALF, mask=inside, other=0.0).to(tl.float32)
    written = out + token * out_token + head[:, None] * out_head + column[None, :]
    tl.store(written, a * cos_a - b * sin_a, mask=inside)
    tl.store(written + HALF, b * cos_b + a * sin_b, mask=inside)


def rotate(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`[1, heads, tokens, size]` rows turned by angles `[1, tokens, size]`; new, laid out alike."""
    _, heads, tokens, size = rows.shape
    if len(rows) != 1 or size % 2 or cos.shape != (1, tokens, size) or sin.shape != cos.shape:
        raise ValueError("it turns packed rows by an angle for each token and number")
    if rows.stride(3) != 1 or cos.stride(2) != 1 or sin.stride(2) != 1:
        rows, cos, sin = rows.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(rows)
    columns = triton.next_power_of_2(size // 2)
    at_once = max(1, min(triton.next_power_of_2(heads), NUMBERS // columns))
    if rows.numel():
        _rotate[(tokens, triton.cdiv(heads, at_once))](
            rows,
            cos,
            sin,
            out,
            heads,
            *(rows.stride(1), rows.stride(2), out.stride(1), out.stride(2)),
            *(cos.stride(1), sin.stride(1)),
            HALF=size // 2,
            COLUMNS=columns,
            HEADS=at_once,
        )
    return out


# Where the numbers come in eights it knows that whole eights are inside or not, and reads them so.
@triton.jit(do_not_specialize=["units"])
def _silu_times(
    gate: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    units: tl.tensor,
    UNIT: tl.constexpr,
    NUMBERS: tl.constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
    inside = place < tl.cast(units, tl.int64) * UNIT
    x = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, x * tl.sigmoid(x) * y, mask=inside)


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, number by number."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    if count := out.numel():
        unit = 8 if count % 8 == 0 else 1
        _silu_times[(triton.cdiv(count, NUMBERS),)](
            gate, up, out, count // unit, UNIT=unit, NUMBERS=NUMBERS
        )
    return out
