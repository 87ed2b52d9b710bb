"""What int8 layers do on a CPU: products in tiles, and all that is between them.

In operators of their own, quantising rows and undoing it takes longer than products of whole
numbers save. Here each step reads a row once and writes it once, and on a processor with matrix
units (Intel's AMX) a product's sums are used while they are in its cache. A row has identical bits
whatever other rows there are: sums of whole numbers are exact, and a row is computed by itself.

Quantised values are bytes: whole numbers around `zero`, which is 0 for tiles and 128 where a kernel
wants them unsigned. A row's scale is what one of its whole numbers is worth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from .compiling import OPTIONS, Array, inline, kernel, use_widest_vectors
from .numbers import HALF, ONE, ROUNDING, bits_of, loaded, rounded
from .tiles import (
    COLUMNS_AT_ONCE,
    ROWS_AT_ONCE,
    TILE,
    clear_sums,
    configure,
    load_tile,
    multiply_bytes,
    release,
    store_sums,
)

__all__ = ["Tiles", "add_and_norm", "dequantize", "gelu_and_quantize", "in_tiles", "quantize"]

QMAX = np.float32(127)
"""The largest quantised value."""

SMALLEST = np.uint32(0x0DA24260)  # 1e-30 as bits, instead of the largest number of a row of zeros
MAGNITUDE = np.uint32(0x7FFF_FFFF)

# gelu(x) = x (1/2 + t P(t²)), t = x but within ±4: a fit to the normal distribution by least
# squares, weighted until the largest error is smallest: 1.9e-4 within ±8, a hundredth of a step.
GELU_REACH = np.float32(4)
P0, P1, P2, P3, P4, P5, P6 = np.array(
    [
        0.39788326621055603,
        -0.0645730048418045,
        0.008772346191108227,
        -0.0008140075951814651,
        4.7954777983250096e-05,
        -1.5985681329766521e-06,
        2.2780822561685454e-08,
    ],
    np.float32,
)


class Tiles(NamedTuple):
    """A product that has yet to be computed, block by block."""

    quantized: Array
    """Uint8 `[rows, columns]` around 0, as many rows as whole blocks have."""
    weight: Array
    """`in_tiles` of the weight."""
    sums: Array
    """Int32 `[ROWS_AT_ONCE, at least outputs]`: room for one block."""
    palette: Array


def in_tiles(weight: Array) -> Array:
    """A quantised weight, int8 `[outputs, columns]`, as tiles `[outputs / 16, columns / 64, 1024]`.

    A tile's rows are groups of four columns, each with the values of 16 outputs.
    """
    outputs, columns = weight.shape
    down, across = outputs // 16, columns // COLUMNS_AT_ONCE
    groups = weight.reshape(down, 16, across, 16, 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(groups).reshape(down, across, TILE)


def _block(source: Any, start: Any) -> Any:
    """Sums of the rows from `start` on, `[at least ROWS_AT_ONCE or all that are left, outputs]`."""
    raise NotImplementedError


@overload(_block, strict=False, jit_options=OPTIONS)
def _(source: Any, start: Any) -> Any:
    if isinstance(source, types.Array):
        return lambda source, start: source[start:]

    def multiply(source: Any, start: Any) -> Any:
        quantized, weight, sums = source.quantized, source.weight, source.sums
        columns, step = quantized.shape[1], 4 * sums.shape[1]
        upper, lower = start * columns, (start + 16) * columns
        across = weight.shape[1] * TILE
        configure(source.palette)
        for panel in range(0, weight.shape[0], 2):
            left, right = panel * across, (panel + 1) * across
            clear_sums()
            for k in range(weight.shape[1]):
                load_tile(4, quantized, upper + k * COLUMNS_AT_ONCE, columns)
                load_tile(5, quantized, lower + k * COLUMNS_AT_ONCE, columns)
                load_tile(6, weight, left + k * TILE, COLUMNS_AT_ONCE)
                load_tile(7, weight, right + k * TILE, COLUMNS_AT_ONCE)
                multiply_bytes(0, 4, 6)
                multiply_bytes(1, 4, 7)
                multiply_bytes(2, 5, 6)
                multiply_bytes(3, 5, 7)
            store_sums(sums, 64 * panel, step)
        release()
        return sums

    return multiply


# What is done to each row.
@inline
def _quantize_row(row: Any, at: Any, zero: Any, quantized: Any, row_scales: Any) -> None:
    """Round a row of float32 by its largest number."""
    largest = SMALLEST
    for j in range(row.size):
        # As whole numbers, bits without their sign are in the same order; what is not a number is
        # the largest.
        largest = max(largest, np.uint32(bits_of(row[j]) & MAGNITUDE))
    most = np.uint32(largest).view(np.float32)
    scale, shift = QMAX / most, ROUNDING + zero
    for j in range(row.size):
        quantized[at, j] = np.uint8(bits_of(row[j] * scale + shift))
    row_scales[at] = most / QMAX


@inline
def _gelu(x: Any) -> Any:
    t = min(max(x, -GELU_REACH), GELU_REACH)
    u = t * t
    p = P0 + u * (P1 + u * (P2 + u * (P3 + u * (P4 + u * (P5 + u * P6)))))
    return x * (HALF + t * p)


@kernel
def quantize(
    rows: Array, smoothing: Array, zero: float, quantized: Array, row_scales: Array
) -> None:
    """Rows times `smoothing` `[columns]`, as uint8 `[n, columns]` and scales float32 `[n]`."""
    use_widest_vectors()
    row = np.empty(rows.shape[1], np.float32)
    for i in range(rows.shape[0]):
        for j in range(row.size):
            row[j] = loaded(rows[i, j]) * smoothing[j]
        _quantize_row(row, i, zero, quantized, row_scales)


@kernel
def dequantize(
    source: Any, row_scales: Array, output_scales: Array, bias: Array, out: Array
) -> None:
    """A layer's outputs `[n, outputs]` of its sums, with scales of rows `[n]` and of outputs."""
    use_widest_vectors()
    count, outputs = out.shape
    for start in range(0, count, ROWS_AT_ONCE):
        sums = _block(source, start)
        for i in range(min(ROWS_AT_ONCE, count - start)):
            row_scale = row_scales[start + i]
            for j in range(outputs):
                number = np.float32(sums[i, j]) * (row_scale * output_scales[j]) + bias[j]
                out[start + i, j] = rounded(number, out)


@kernel
def gelu_and_quantize(
    source: Any,
    row_scales: Array,
    output_scales: Array,
    bias: Array,
    smoothing: Array,
    zero: float,
    quantized: Array,
    out_scales: Array,
) -> None:
    """What the next layer takes, `quantize` of the exact GELU of a layer's outputs."""
    use_widest_vectors()
    count = row_scales.size
    row = np.empty(output_scales.size, np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        sums = _block(source, start)
        for i in range(min(ROWS_AT_ONCE, count - start)):
            row_scale = row_scales[start + i]
            for j in range(row.size):
                number = np.float32(sums[i, j]) * (row_scale * output_scales[j]) + bias[j]
                row[j] = _gelu(number) * smoothing[j]
            _quantize_row(row, start + i, zero, quantized, out_scales)


@kernel
def add_and_norm(
    source: Any,
    row_scales: Array,
    output_scales: Array,
    bias: Array,
    residual: Array,
    weight: Array,
    shift: Array,
    epsilon: float,
    out: Array,
) -> None:
    """Layer norm, with `weight` and `shift`, of a layer's outputs and `residual` `[n, outputs]`."""
    use_widest_vectors()
    count, outputs = out.shape
    row = np.empty(outputs, np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        sums = _block(source, start)
        for i in range(min(ROWS_AT_ONCE, count - start)):
            row_scale = row_scales[start + i]
            total = np.float32(0)
            for j in range(outputs):
                number = np.float32(sums[i, j]) * (row_scale * output_scales[j]) + bias[j]
                number += loaded(residual[start + i, j])
                row[j] = number
                total += number
            mean = total / np.float32(outputs)
            squares = np.float32(0)
            for j in range(outputs):
                squares += (row[j] - mean) * (row[j] - mean)
            scale = ONE / np.sqrt(squares / np.float32(outputs) + epsilon)
            for j in range(outputs):
                number = (row[j] - mean) * scale * weight[j] + shift[j]
                out[start + i, j] = rounded(number, out)
