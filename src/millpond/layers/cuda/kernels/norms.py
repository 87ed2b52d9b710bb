"""Triton kernels for norms: what is added before one, the norm, and what reads it, in one pass.

Each row is read once, summed and normalised in float32, and rounded once. Where the next product
runs in float8, the same pass writes the row's e4m3 values and its scale, so that no kernel of its
own has to read the row again for it. A row's bits do not depend on the other rows.

Import this module only where there is a use for it, as `decoder`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..float8 import LARGEST, Float8Rows, empty_float8
from .packed import LayerNorm

__all__ = ["add_layer_norm", "add_rms_norm", "embedding_norm"]

MOST_WIDTH = 16_384  # of a row, which a program holds in registers
NUMBERS = 512  # of a row for each warp


@triton.jit
def _float8_row(
    y: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    row: tl.tensor,
    places: tl.tensor,
    inside: tl.tensor,
    LARGEST: tl.constexpr,
) -> None:
    """A row as e4m3 values and a float32 scale, of its largest number."""
    largest = tl.maximum(tl.max(tl.where(inside, tl.abs(y), 0.0), axis=0), 1e-12)
    tl.store(values + places, (y * (LARGEST / largest)).to(tl.float8e4nv), mask=inside)
    tl.store(scales + row, largest / LARGEST)


@triton.jit
def _add_layer_norm(
    rows: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    epsilon: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    FLOAT8: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < WIDTH
    places = row * WIDTH + column
    x = tl.load(rows + places, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / WIDTH
    x = tl.where(inside, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + epsilon)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    y = x * scale * w + b
    tl.store(out + places, y, mask=inside)
    if FLOAT8:
        _float8_row(y, values, scales, row, places, inside, LARGEST)


def add_layer_norm(
    rows: Tensor, residual: Tensor, norm: LayerNorm, *, float8: bool = False
) -> tuple[Tensor, Float8Rows | None]:
    """The norm of `rows + residual`, `[n, width]` both and contiguous, and with `float8` the same
    in float8."""
    width, columns, warps = _shape(rows)
    out = torch.empty_like(rows)
    quantised = empty_float8(rows) if float8 else None
    if count := len(rows):
        _add_layer_norm[(count,)](
            rows,
            residual,
            norm.weight,
            norm.bias,
            out,
            *(quantised or (out, out)),
            norm.epsilon,
            WIDTH=width,
            COLUMNS=columns,
            FLOAT8=float8,
            LARGEST=LARGEST,
            num_warps=warps,
        )
    return out, quantised


@triton.jit
def _embedding_norm(
    ids: tl.tensor,
    positions: tl.tensor,
    words: tl.tensor,
    places_table: tl.tensor,
    types: tl.tensor,
    types_table: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    epsilon: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_TYPES: tl.constexpr,
    FLOAT8: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < WIDTH
    word = tl.load(ids + row).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    x = tl.load(words + word * WIDTH + column, mask=inside, other=0.0)
    x = x.to(tl.float32)
    y = tl.load(places_table + position * WIDTH + column, mask=inside, other=0.0)
    x += y.to(tl.float32)
    if HAS_TABLE:
        place = types_table + column
        if HAS_TYPES:
            place += tl.load(types + row).to(tl.int64) * WIDTH
        x += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / WIDTH
    x = tl.where(inside, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + epsilon)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    places = row * WIDTH + column
    normed = x * scale * w + b
    tl.store(out + places, normed, mask=inside)
    if FLOAT8:
        _float8_row(normed, values, scales, row, places, inside, LARGEST)


def embedding_norm(
    ids: Tensor,
    positions: Tensor,
    tables: tuple[Tensor, Tensor, Tensor | None],
    norm: LayerNorm,
    *,
    types: Tensor | None = None,
    float8: bool = False,
) -> tuple[Tensor, Float8Rows | None]:
    """The norm of the sum of embeddings, `[n, width]`, of ids, positions and types, int64 `[n]`.

    `tables` are those of words, of positions and of types; without `types` all are of the first.
    """
    words, places, kinds = tables
    out = words.new_empty(len(ids), words.shape[1])
    width, columns, warps = _shape(out)
    quantised = empty_float8(out) if float8 else None
    if count := len(ids):
        _embedding_norm[(count,)](
            ids,
            positions,
            words,
            places,
            ids if types is None else types,
            words if kinds is None else kinds,
            norm.weight,
            norm.bias,
            out,
            *(quantised or (out, out)),
            norm.epsilon,
            WIDTH=width,
            COLUMNS=columns,
            HAS_TABLE=kinds is not None,
            HAS_TYPES=types is not None,
            FLOAT8=float8,
            LARGEST=LARGEST,
            num_warps=warps,
        )
    return out, quantised


@triton.jit
def _add_rms_norm(
    rows: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    epsilon: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ADDS: tl.constexpr,
    FLOAT8: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < WIDTH
    places = row * WIDTH + column
    x = tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(rows + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual + places, x, mask=inside)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + epsilon)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    y = x * scale * w
    if FLOAT8:
        _float8_row(y, values, scales, row, places, inside, LARGEST)
    else:
        tl.store(out + places, y, mask=inside)


def add_rms_norm(
    rows: Tensor | None, residual: Tensor, weight: Tensor, epsilon: float, *, float8: bool = False
) -> Tensor | Float8Rows:
    """Add `rows` to `residual`, in its place, and give the RMS norm of the sum times `weight`.

    `[n, width]` and contiguous; without `rows` it is the norm of `residual`. With `float8` the norm
    comes in float8 alone.
    """
    width, columns, warps = _shape(residual)
    quantised = empty_float8(residual) if float8 else None
    out = residual if float8 else torch.empty_like(residual)
    if count := len(residual):
        _add_rms_norm[(count,)](
            residual if rows is None else rows,
            residual,
            weight,
            out,
            *(quantised or (out, out)),
            epsilon,
            WIDTH=width,
            COLUMNS=columns,
            ADDS=rows is not None,
            FLOAT8=float8,
            LARGEST=LARGEST,
            num_warps=warps,
        )
    return quantised or out


def _shape(rows: Tensor) -> tuple[int, int, int]:
    """The width, its power of two, and the warps for a row."""
    width = rows.shape[1]
    if width > MOST_WIDTH or not rows.is_contiguous():
        raise ValueError(f"rows of {width} that lie end to end are needed, of {MOST_WIDTH} at most")
    columns = triton.next_power_of_2(width)
    return width, columns, min(16, max(1, columns // NUMBERS))
