"""The instructions of a processor's matrix units (Intel's AMX), which multiply tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiling import has_features, inline

__all__ = [
    "COLUMNS_AT_ONCE",
    "OUTPUTS_AT_ONCE",
    "PALETTE",
    "ROWS_AT_ONCE",
    "TILE",
    "clear_sums",
    "configure",
    "has_tiles",
    "load_tile",
    "multiply_all_bfloat16",
    "multiply_bytes",
    "release",
    "store_sums",
]

ROWS_AT_ONCE = 32  # of tokens, in two tiles
OUTPUTS_AT_ONCE = 32
COLUMNS_AT_ONCE = 64  # bytes of a tile's row
TILE = 1024  # bytes: 16 rows

PALETTE = np.zeros(64, np.uint8)
"""The shapes of the eight tiles, as the processor takes them (LDTILECFG in Intel's manual)."""
PALETTE[0] = 1
PALETTE[16:32].view(np.uint16)[:] = COLUMNS_AT_ONCE
PALETTE[48:56] = 16


@cache
def has_tiles() -> bool:
    """Whether this processor has matrix units for bytes, which the system and Numba let us use."""
    initialize = getattr(torch.cpu, "_init_amx", None)  # asks the system for the units' state
    if initialize is None or not has_features("amx-tile", "amx-int8", "amx-bf16"):
        return False
    return bool(initialize())


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
    """Code for one that moves a tile from or to memory; see `load_tile`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[1], *arguments[1:3])
        _emit(builder, name, _number(tile), place, arguments[3])
        return context.get_dummy_value()

    return generate


@intrinsic
def configure(context: Any, palette: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = ir.Constant(ir.IntType(64), 0)
        place = _place(context, builder, signature.args[0], arguments[0], start)
        _emit(builder, "llvm.x86.ldtilecfg", place)
        return context.get_dummy_value()

    return types.void(palette), generate


@intrinsic
def release(context: Any) -> Any:
    return types.void(), _of_tiles("llvm.x86.tilerelease")


@intrinsic(prefer_literal=True)
def clear_tile(context: Any, tile: Any) -> Any:
    return types.void(tile), _of_tiles("llvm.x86.tilezero", tile)


@intrinsic(prefer_literal=True)
def load_tile(context: Any, tile: Any, array: Any, offset: Any, stride: Any) -> Any:
    """16 rows of 64 bytes, `stride` bytes apart."""
    kind = types.void(tile, array, types.int64, types.int64)
    return kind, _of_memory("llvm.x86.tileloadd64", tile)


@intrinsic(prefer_literal=True)
def store_tile(context: Any, tile: Any, array: Any, offset: Any, stride: Any) -> Any:
    kind = types.void(tile, array, types.int64, types.int64)
    return kind, _of_memory("llvm.x86.tilestored64", tile)


@intrinsic(prefer_literal=True)
def multiply_bytes(context: Any, sums: Any, rows: Any, columns: Any) -> Any:
    """Add the product of signed bytes to a tile of 16 x 16 sums."""
    kind = types.void(sums, rows, columns)
    return kind, _of_tiles("llvm.x86.tdpbssd", sums, rows, columns)


@intrinsic(prefer_literal=True)
def multiply_bfloat16(context: Any, sums: Any, rows: Any, columns: Any) -> Any:
    """Add the product of pairs of bfloat16 to a tile of 16 x 16 float32."""
    kind = types.void(sums, rows, columns)
    return kind, _of_tiles("llvm.x86.tdpbf16ps", sums, rows, columns)


# Tiles 0 to 3 are sums of 32 rows and 32 columns, 4 and 5 the rows, 6 and 7 the columns.
@inline
def clear_sums() -> None:
    clear_tile(0)
    clear_tile(1)
    clear_tile(2)
    clear_tile(3)


@inline
def store_sums(array: Any, offset: Any, stride: Any) -> None:
    store_tile(0, array, offset, stride)
    store_tile(1, array, offset + 64, stride)
    store_tile(2, array, offset + 16 * stride, stride)
    store_tile(3, array, offset + 16 * stride + 64, stride)


@inline
def multiply_all_bfloat16() -> None:
    multiply_bfloat16(0, 4, 6)
    multiply_bfloat16(1, 4, 7)
    multiply_bfloat16(2, 5, 6)
    multiply_bfloat16(3, 5, 7)
