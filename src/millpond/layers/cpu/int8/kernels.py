"""What int8 layers do on a CPU, compiled by Numba: products in tiles, and all that is between them.

In operators of their own, quantising rows and undoing it takes longer than products of whole
numbers save. Here each step reads a row once and writes it once, and on a processor with matrix
units (Intel's AMX) a product's sums are used while they are in its cache. A row has identical bits
whatever other rows there are: sums of whole numbers are exact, and a row is computed by itself.

Arrays are numpy views of torch's memory, which begins at a cache line; tiles need that. Elements
are float32, or bfloat16 as uint16. Quantised values are bytes: whole numbers around `zero`, which
is 0 for tiles and 128 where a kernel wants them unsigned. A row's scale is what one of its whole
numbers is worth. All of this is in one file, since Numba keeps compiled code on disk by the file
that a function is in.

Numba comes with `pip install "millpond[int8]"`: import this module only where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

__all__ = [
    "COLUMNS_AT_ONCE",
    "OUTPUTS_AT_ONCE",
    "PALETTE",
    "ROWS_AT_ONCE",
    "Tiles",
    "add_and_norm",
    "attend",
    "dequantize",
    "gelu_and_quantize",
    "has_tiles",
    "in_tiles",
    "quantize",
]

Array = npt.NDArray[Any]


# Not numbers that are taken to be finite: a row that is not stays so.
FAST = {"arcp", "contract", "nsz", "reassoc"}


OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}


QMAX = np.float32(127)
"""The largest quantised value."""


SMALLEST = np.uint32(0x0DA24260)  # 1e-30 as bits, instead of the largest number of a row of zeros


MAGNITUDE = np.uint32(0x7FFF_FFFF)


# Added to a small number, it leaves that number, rounded, in the low bits.
ROUNDING = np.float32(3 * 2**22)


HALF = np.float32(0.5)


ONE = np.float32(1)


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


# 2 to the power of -1/2 to 1/2 as 1 + x (E1 + x (E2 + x E3)).
E1, E2, E3 = np.array([0.6931472, 0.2402265, 0.0558282], np.float32)


LOG2_E = np.float32(1.4426950408889634)


LEAST_POWER = np.float32(-126)


MOST_TOTAL = np.float32(2**60)  # of powers, and its inverse the least


LOWEST = np.float32(-1e30)  # the score of a masked key


ROWS_AT_ONCE = 32  # of tokens, in two tiles


OUTPUTS_AT_ONCE = 32


COLUMNS_AT_ONCE = 64  # bytes of a tile's row


TILE = 1024  # bytes: 16 rows


PALETTE = np.zeros(64, np.uint8)
"""The shapes of the eight tiles, as the processor takes them (LDTILECFG in Intel's manual)."""


PALETTE[0] = 1


PALETTE[16:32].view(np.uint16)[:] = COLUMNS_AT_ONCE


PALETTE[48:56] = 16


def _kernel(function: Callable[..., Any]) -> Any:
    """Compiled when first called, and kept on disk where there is a place for it."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder that may be written to
        return numba.njit(**OPTIONS)(function)


def _inline(function: Callable[..., Any]) -> Any:
    return numba.njit(forceinline=True, **OPTIONS)(function)


@intrinsic
def _use_widest_vectors(context: Any) -> Any:
    """For the function it is called in: 512 bits where there are, of which LLVM takes 256."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite knows only some attributes by name.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


# Numbers, stored as float32 or bfloat16.
@_inline
def _bits(number: Any) -> Any:
    return np.float32(number).view(np.uint32)


def _loaded(stored: Any) -> Any:
    """A stored number as float32."""
    raise NotImplementedError


@overload(_loaded, strict=False, jit_options={"forceinline": True, **OPTIONS})
def _(stored: Any) -> Any:
    if stored == types.uint16:
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored


def _rounded(number: Any, out: Any) -> Any:
    """A float32 as `out` stores it."""
    raise NotImplementedError


@overload(_rounded, strict=False, jit_options={"forceinline": True, **OPTIONS})
def _(number: Any, out: Any) -> Any:
    if out.dtype == types.uint16:

        def to_bfloat16(number: Any, out: Any) -> Any:
            bits = _bits(number)
            to_even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            return np.uint16(np.uint32(bits + to_even + np.uint32(0x7FFF)) >> np.uint32(16))

        return to_bfloat16
    return lambda number, out: number


# Tiles: LLVM's names of the instructions, and the numbers of the tiles as constants.
def _emit(builder: Any, name: str, *arguments: Any) -> None:
    kinds = [argument.type for argument in arguments]
    function = ir.FunctionType(ir.VoidType(), kinds)
    builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _number(literal: Any) -> Any:
    return ir.Constant(ir.IntType(8), literal.literal_value)


def _place(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Where a byte of an array is."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [offset])


def _of_tiles(name: str, *tiles: Any) -> Callable[..., Any]:
    """Code for an instruction that reads and writes tiles alone."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit(builder, name, *map(_number, tiles))
        return context.get_dummy_value()

    return generate


def _of_memory(name: str, tile: Any) -> Callable[..., Any]:
    """Code for one that moves a tile from or to memory; see `_load`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[1], *arguments[1:3])
        _emit(builder, name, _number(tile), place, arguments[3])
        return context.get_dummy_value()

    return generate


@intrinsic
def _configure(context: Any, palette: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = ir.Constant(ir.IntType(64), 0)
        place = _place(context, builder, signature.args[0], arguments[0], start)
        _emit(builder, "llvm.x86.ldtilecfg", place)
        return context.get_dummy_value()

    return types.void(palette), generate


@intrinsic
def _release(context: Any) -> Any:
    return types.void(), _of_tiles("llvm.x86.tilerelease")


@intrinsic(prefer_literal=True)
def _clear(context: Any, tile: Any) -> Any:
    return types.void(tile), _of_tiles("llvm.x86.tilezero", tile)


@intrinsic(prefer_literal=True)
def _load(context: Any, tile: Any, array: Any, offset: Any, stride: Any) -> Any:
    """16 rows of 64 bytes, `stride` bytes apart."""
    kind = types.void(tile, array, types.int64, types.int64)
    return kind, _of_memory("llvm.x86.tileloadd64", tile)


@intrinsic(prefer_literal=True)
def _store(context: Any, tile: Any, array: Any, offset: Any, stride: Any) -> Any:
    kind = types.void(tile, array, types.int64, types.int64)
    return kind, _of_memory("llvm.x86.tilestored64", tile)


@intrinsic(prefer_literal=True)
def _multiply(context: Any, sums: Any, rows: Any, columns: Any) -> Any:
    """Add the product of signed bytes to a tile of 16 x 16 sums."""
    kind = types.void(sums, rows, columns)
    return kind, _of_tiles("llvm.x86.tdpbssd", sums, rows, columns)


@intrinsic(prefer_literal=True)
def _multiply_bfloat16(context: Any, sums: Any, rows: Any, columns: Any) -> Any:
    """Add the product of pairs of bfloat16 to a tile of 16 x 16 float32."""
    kind = types.void(sums, rows, columns)
    return kind, _of_tiles("llvm.x86.tdpbf16ps", sums, rows, columns)


# Tiles 0 to 3 are sums of 32 rows and 32 columns, 4 and 5 the rows, 6 and 7 the columns.
@_inline
def _clear_sums() -> None:
    _clear(0)
    _clear(1)
    _clear(2)
    _clear(3)


@_inline
def _store_sums(array: Any, offset: Any, stride: Any) -> None:
    _store(0, array, offset, stride)
    _store(1, array, offset + 64, stride)
    _store(2, array, offset + 16 * stride, stride)
    _store(3, array, offset + 16 * stride + 64, stride)


@_inline
def _multiply_all_bfloat16() -> None:
    _multiply_bfloat16(0, 4, 6)
    _multiply_bfloat16(1, 4, 7)
    _multiply_bfloat16(2, 5, 6)
    _multiply_bfloat16(3, 5, 7)


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
        _configure(source.palette)
        for panel in range(0, weight.shape[0], 2):
            left, right = panel * across, (panel + 1) * across
            _clear_sums()
            for k in range(weight.shape[1]):
                _load(4, quantized, upper + k * COLUMNS_AT_ONCE, columns)
                _load(5, quantized, lower + k * COLUMNS_AT_ONCE, columns)
                _load(6, weight, left + k * TILE, COLUMNS_AT_ONCE)
                _load(7, weight, right + k * TILE, COLUMNS_AT_ONCE)
                _multiply(0, 4, 6)
                _multiply(1, 4, 7)
                _multiply(2, 5, 6)
                _multiply(3, 5, 7)
            _store_sums(sums, 64 * panel, step)
        _release()
        return sums

    return multiply


@cache
def has_tiles() -> bool:
    """Whether this processor has matrix units for bytes, and the system and Numba let us use them.

    Their instructions are fatal where they are not there, so Numba must not have been configured
    for another processor.
    """
    told = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    initialize = getattr(torch.cpu, "_init_amx", None)  # asks the system for the units' state
    if any(told) or initialize is None:
        return False
    features = binding.get_host_cpu_features()
    has_units = all(features.get(name) for name in ("amx-tile", "amx-int8", "amx-bf16"))
    return bool(has_units and initialize())


# What is done to each row.
@_inline
def _quantize_row(row: Any, at: Any, zero: Any, quantized: Any, row_scales: Any) -> None:
    """Round a row of float32 by its largest number."""
    largest = SMALLEST
    for j in range(row.size):
        # As whole numbers, bits without their sign are in the same order; what is not a number is
        # the largest.
        largest = max(largest, np.uint32(_bits(row[j]) & MAGNITUDE))
    most = np.uint32(largest).view(np.float32)
    scale, shift = QMAX / most, ROUNDING + zero
    for j in range(row.size):
        quantized[at, j] = np.uint8(_bits(row[j] * scale + shift))
    row_scales[at] = most / QMAX


@_inline
def _gelu(x: Any) -> Any:
    t = min(max(x, -GELU_REACH), GELU_REACH)
    u = t * t
    p = P0 + u * (P1 + u * (P2 + u * (P3 + u * (P4 + u * (P5 + u * P6)))))
    return x * (HALF + t * p)


@_kernel
def quantize(
    rows: Array, smoothing: Array, zero: float, quantized: Array, row_scales: Array
) -> None:
    """Rows times `smoothing` `[columns]`, as uint8 `[n, columns]` and scales float32 `[n]`."""
    _use_widest_vectors()
    row = np.empty(rows.shape[1], np.float32)
    for i in range(rows.shape[0]):
        for j in range(row.size):
            row[j] = _loaded(rows[i, j]) * smoothing[j]
        _quantize_row(row, i, zero, quantized, row_scales)


@_kernel
def dequantize(
    source: Any, row_scales: Array, output_scales: Array, bias: Array, out: Array
) -> None:
    """A layer's outputs `[n, outputs]` of its sums, with scales of rows `[n]` and of outputs."""
    _use_widest_vectors()
    count, outputs = out.shape
    for start in range(0, count, ROWS_AT_ONCE):
        sums = _block(source, start)
        for i in range(min(ROWS_AT_ONCE, count - start)):
            row_scale = row_scales[start + i]
            for j in range(outputs):
                number = np.float32(sums[i, j]) * (row_scale * output_scales[j]) + bias[j]
                out[start + i, j] = _rounded(number, out)


@_kernel
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
    _use_widest_vectors()
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


@_kernel
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
    _use_widest_vectors()
    count, outputs = out.shape
    row = np.empty(outputs, np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        sums = _block(source, start)
        for i in range(min(ROWS_AT_ONCE, count - start)):
            row_scale = row_scales[start + i]
            total = np.float32(0)
            for j in range(outputs):
                number = np.float32(sums[i, j]) * (row_scale * output_scales[j]) + bias[j]
                number += _loaded(residual[start + i, j])
                row[j] = number
                total += number
            mean = total / np.float32(outputs)
            squares = np.float32(0)
            for j in range(outputs):
                squares += (row[j] - mean) * (row[j] - mean)
            scale = ONE / np.sqrt(squares / np.float32(outputs) + epsilon)
            for j in range(outputs):
                number = (row[j] - mean) * scale * weight[j] + shift[j]
                out[start + i, j] = _rounded(number, out)


# Attention of whole sequences, in bfloat16.
@_inline
def _in_order(bits: Any) -> Any:
    """Bits of a float32 as a whole number that is larger for a larger one, and back."""
    number = np.int32(bits)
    return np.int32(number ^ np.int32(np.int32(number >> np.int32(31)) & np.int32(0x7FFF_FFFF)))


# The sum and what it was rounded to must not be simplified away.
@numba.njit(forceinline=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _power_of_two(x: Any) -> Any:
    """2 to the power of x, from -126 to 126, to 1e-4 of it; as bits."""
    shifted = np.float32(x + ROUNDING)
    f = np.float32(x - np.float32(shifted - ROUNDING))
    p = ONE + f * (E1 + f * (E2 + f * E3))
    return np.uint32(_bits(p) + np.uint32(_bits(shifted) << np.uint32(23)))


@_inline
def _put_keys(joined: Any, start: Any, length: Any, place: Any, half: Any, keys: Any) -> None:
    """Keys as tiles `[keys / 16, size / 32, 16 pairs of numbers, 16 keys]`, pairs as uint32."""
    keys[-1] = 0
    keys[-2] = 0
    for key in range(length):
        tile, n = key // 16, key % 16
        for step in range(half // 16):
            for pair in range(16):
                keys[tile, step, 16 * pair + n] = joined[start + key, place + 16 * step + pair]


@_inline
def _put_values(joined: Any, start: Any, length: Any, place: Any, values: Any) -> None:
    """Values as tiles `[keys / 32, size / 16, 16 pairs of keys, 16 numbers]`, pairs as uint32."""
    values[-1] = 0
    for pair in range((length + 1) // 2):
        tile, row, first = pair // 16, 16 * (pair % 16), start + 2 * pair
        has_second = 2 * pair + 1 < length
        second = first + 1 if has_second else first
        mask = np.uint32(0xFFFF_0000 if has_second else 0)
        for column in range(values.shape[1]):
            at = place + 16 * column
            for d in range(16):
                high = np.uint32(np.uint32(joined[second, at + d]) << np.uint32(16)) & mask
                values[tile, column, row + d] = np.uint32(np.uint32(joined[first, at + d]) | high)


@_inline
def _put_powers(scores: Any, i: Any, columns: Any, scaling: Any, highest: Any, weights: Any) -> Any:
    """2 to the power of a row of scores, times `scaling` and less `highest`, and their sum."""
    total = np.float32(0)
    for j in range(columns):
        power = scores[i, j] * scaling - highest
        # What is not a number is in no order, and stays.
        power = LEAST_POWER if power < LEAST_POWER else power
        power = -LEAST_POWER if power > -LEAST_POWER else power
        bits = _power_of_two(power)
        weights[i, j] = np.uint16(np.uint32(bits + np.uint32(0x8000)) >> np.uint32(16))
        total += np.uint32(bits).view(np.float32)
    return total


@_inline
def _put_weights(
    scores: Any, count: Any, length: Any, scaling: Any, weights: Any, totals: Any
) -> None:
    """Softmax of rows of scores, as bfloat16 and before it is divided by `totals`."""
    columns = (length + 31) // 32 * 32
    for i in range(count):
        for j in range(length, columns):
            scores[i, j] = LOWEST
        total = _put_powers(scores, i, columns, scaling, np.float32(0), weights)
        # Only scores far from 0 have to be shifted, by the largest of them.
        if not ONE / MOST_TOTAL < total < MOST_TOTAL:
            most = np.int32(-(2**31))
            for j in range(length):
                most = max(most, _in_order(_bits(scores[i, j])))
            highest = np.uint32(_in_order(most)).view(np.float32) * scaling
            total = _put_powers(scores, i, columns, scaling, highest, weights)
        totals[i] = total


@_kernel
def attend(
    joined: Array,
    pairs: Array,
    starts: Array,
    lengths: Array,
    size: int,
    scaling: float,
    scores: Array,
    weights: Array,
    keys: Array,
    values: Array,
    query: Array,
    palette: Array,
    out: Array,
) -> None:
    """Every sequence's attention to itself, uint16 `[n, heads x size]`, in tiles.

    Query, key and value are `joined`, uint16 `[n, 3 x heads x size]`, and `pairs` the same as
    uint32. What is between is room, that begins at a cache line: `scores` float32 `[32, k]`,
    `weights` uint16 `[32, k]`, `keys` uint32 `[k / 16, size / 32, 256]`, `values` uint32 `[k / 32,
    size / 16, 256]` and `query` uint16 `[32, size]`, k being the longest length, and up to a
    multiple of 32.
    """
    _use_widest_vectors()
    width = out.shape[1]
    heads, half, tiles = width // size, size // 2, size // 32
    to_power = np.float32(scaling * LOG2_E)
    totals = np.empty(ROWS_AT_ONCE, np.float32)
    sums = scores.reshape(-1)
    stride, weight_stride = 4 * scores.shape[1], 2 * weights.shape[1]
    _configure(palette)
    for s in range(starts.size):
        start, length = starts[s], lengths[s]
        blocks = (length + 31) // 32
        for head in range(heads):
            place = head * size
            _put_keys(pairs, start, length, (width + place) // 2, half, keys[: 2 * blocks])
            _put_values(joined, start, length, 2 * width + place, values[:blocks])
            for row in range(0, length, ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, length - row)
                for i in range(count):
                    for d in range(size):
                        query[i, d] = joined[start + row + i, place + d]
                for block in range(blocks):
                    _clear_sums()
                    for k in range(tiles):
                        left = (2 * block * tiles + k) * TILE
                        _load(4, query, 64 * k, 2 * size)
                        _load(5, query, 64 * k + 32 * size, 2 * size)
                        _load(6, keys, left, 64)
                        _load(7, keys, left + tiles * TILE, 64)
                        _multiply_all_bfloat16()
                    _store_sums(scores, 128 * block, stride)
                _put_weights(scores, count, length, to_power, weights, totals)
                for column in range(0, 2 * tiles, 2):
                    _clear_sums()
                    for block in range(blocks):
                        left = (2 * block * tiles + column) * TILE
                        _load(4, weights, 64 * block, weight_stride)
                        _load(5, weights, 64 * block + 16 * weight_stride, weight_stride)
                        _load(6, values, left, 64)
                        _load(7, values, left + TILE, 64)
                        _multiply_all_bfloat16()
                    _store_sums(scores, 0, 128)
                    for i in range(count):
                        share = ONE / totals[i]
                        for d in range(32):
                            number = sums[32 * i + d] * share
                            out[start + row + i, place + 16 * column + d] = _rounded(number, out)
    _release()
