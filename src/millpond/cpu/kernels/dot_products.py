"""A processor's dot products of pairs of bfloat16 (`vdpbf16ps`), 16 sums at a time.

Memory is read as words of 32 bits, which are pairs of numbers, and offsets count words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiling import has_features

__all__ = [
    "DOT_ROWS",
    "has_dot_products",
    "interleave",
    "multiply_pairs",
    "transpose",
    "weigh_pairs",
]

WIDTH = 16  # words of a vector
DOT_ROWS = 8  # of a block of sums, which with its 32 columns is 16 of 32 registers
DOT_PRODUCT = "llvm.x86.avx512bf16.dpbf16ps.512"

WORD = ir.IntType(32)
FLOATS, WORDS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(WORD, WIDTH)
HALVES, PAIRS_OF_HALVES = (ir.VectorType(ir.IntType(16), count * WIDTH) for count in (1, 2))

PAIR, TRIPLE = (types.UniTuple(types.int64, count) for count in (2, 3))


@cache
def has_dot_products() -> bool:
    """Whether this processor adds up products of bfloat16 in pairs, 16 sums at a time."""
    return has_features("avx512bf16", "avx512bw")


def _data(context: Any, builder: Any, signature: Any, arguments: Any, place: int) -> Any:
    """The start of an array, that is an argument, as of 32-bit words."""
    array = context.make_array(signature.args[place])(context, builder, arguments[place])
    return builder.bitcast(array.data, WORD.as_pointer())


def _vector_at(builder: Any, data: Any, offset: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def _whole(number: int) -> Any:
    return ir.Constant(ir.IntType(64), number)


def _mixed(builder: Any, order: Sequence[int], first: Any, second: Any) -> Any:
    kind = ir.VectorType(WORD, len(order))
    return builder.shuffle_vector(first, second, ir.Constant(kind, list(order)))


def _least(builder: Any, first: Any, second: Any) -> Any:
    return builder.select(builder.icmp_signed("<", first, second), first, second)


@intrinsic
def transpose(
    context: Any, source: Any, start: Any, step: Any, count: Any, out: Any, place: Any
) -> Any:
    """16 rows of 16 words, `step` apart, as columns of `out`, those from `count` on as the last."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, start, step, count, _, place = arguments
        data = _data(context, builder, signature, arguments, 0)
        last = builder.sub(count, _whole(1))
        rows = []
        for row in range(WIDTH):
            offset = builder.mul(_least(builder, _whole(row), last), step)
            at = _vector_at(builder, data, builder.add(start, offset), WORDS)
            rows.append(builder.load(at, align=4))
        for apart in (1, 2, 4, 8):
            low = [i if not i & apart else WIDTH + i - apart for i in range(WIDTH)]
            high = [i + apart if not i & apart else WIDTH + i for i in range(WIDTH)]
            for row in range(WIDTH):
                if not row & apart:
                    pair = rows[row], rows[row + apart]
                    rows[row] = _mixed(builder, low, *pair)
                    rows[row + apart] = _mixed(builder, high, *pair)
        data = _data(context, builder, signature, arguments, 4)
        for row, words in enumerate(rows):
            at = builder.add(place, _whole(WIDTH * row))
            builder.store(words, _vector_at(builder, data, at, WORDS), align=64)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(source, whole, whole, whole, out, whole), generate


@intrinsic
def interleave(context: Any, source: Any, first: Any, second: Any, out: Any, place: Any) -> Any:
    """Two runs of 32 numbers as pairs, the last 16 of which come 256 words after the first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, first, second, _, place = arguments
        data = _data(context, builder, signature, arguments, 0)
        runs = [
            builder.load(_vector_at(builder, data, start, PAIRS_OF_HALVES), align=4)
            for start in (first, second)
        ]
        data = _data(context, builder, signature, arguments, 3)
        for half in range(2):
            numbers = range(WIDTH * half, WIDTH * (half + 1))
            order = [place for number in numbers for place in (number, 2 * WIDTH + number)]
            at = _vector_at(builder, data, builder.add(place, _whole(256 * half)), PAIRS_OF_HALVES)
            builder.store(_mixed(builder, order, *runs), at, align=64)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(source, whole, whole, out, whole), generate


def _sum_products(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Sums of 8 rows and 32 columns, by the first arguments of `multiply_pairs`."""
    left, right = (_data(context, builder, signature, arguments, at) for at in (0, 2))
    rows = _row_starts(builder, *cgutils.unpack_tuple(builder, arguments[1]))
    columns, steps = (cgutils.unpack_tuple(builder, arguments[at]) for at in (3, 4))
    kind = ir.FunctionType(FLOATS, [FLOATS, WORDS, WORDS])
    multiply = cgutils.get_or_insert_function(builder.module, kind, DOT_PRODUCT)
    nothing, none = ir.Constant(FLOATS, [0.0] * WIDTH), ir.Constant(WORDS, ir.Undefined)
    kept = [[cgutils.alloca_once(builder, FLOATS) for _ in columns] for _ in rows]
    for place in [place for row in kept for place in row]:
        builder.store(nothing, place)
    with cgutils.for_range(builder, steps[0]) as loop:
        sums = [[builder.load(place) for place in row] for row in kept]
        before = builder.mul(loop.index, _whole(WIDTH))
        starts = [builder.gep(left, [builder.add(row, before)]) for row in rows]
        further = builder.mul(loop.index, steps[1])
        for pair in range(WIDTH):
            panel = builder.add(further, _whole(WIDTH * pair))
            wide = [
                builder.load(_vector_at(builder, right, builder.add(c, panel), WORDS), align=64)
                for c in columns
            ]
            for row, start in zip(sums, starts, strict=True):
                one = builder.load(builder.gep(start, [_whole(pair)]), align=4)
                one = builder.insert_element(none, one, ir.Constant(WORD, 0))
                one = _mixed(builder, [0] * WIDTH, one, none)
                row[:] = [
                    builder.call(multiply, [total, one, words])
                    for total, words in zip(row, wide, strict=True)
                ]
        for row, places in zip(sums, kept, strict=True):
            for total, place in zip(row, places, strict=True):
                builder.store(total, place)
    return [[builder.load(place) for place in row] for row in kept]


@intrinsic
def multiply_pairs(
    context: Any, left: Any, rows: Any, right: Any, panels: Any, steps: Any, out: Any, place: Any
) -> Any:
    """Products of 8 rows of pairs with 32 columns, float32 in rows of `out` from `place` on.

    `rows` says where in `left` they begin, how far they are apart and how many there are: further
    ones are the last. `panels` says where in `right` the first and the last 16 columns begin, and
    `steps` how many times 16 pairs there are and how far apart those are.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums = _sum_products(context, builder, signature, arguments)
        array = context.make_array(signature.args[5])(context, builder, arguments[5])
        data = builder.bitcast(array.data, WORD.as_pointer())
        width = builder.sdiv(builder.extract_value(array.strides, 0), _whole(4))
        for number, row in enumerate(sums):
            at = builder.add(arguments[6], builder.mul(width, _whole(number)))
            for half, total in enumerate(row):
                half_at = builder.add(at, _whole(WIDTH * half))
                builder.store(total, _vector_at(builder, data, half_at, FLOATS), align=64)
        return context.get_dummy_value()

    return types.void(left, TRIPLE, right, PAIR, PAIR, out, types.int64), generate


@intrinsic
def weigh_pairs(
    context: Any,
    left: Any,
    rows: Any,
    right: Any,
    panels: Any,
    steps: Any,
    shares: Any,
    first: Any,
    out: Any,
    places: Any,
) -> Any:
    """The same times the shares from the `first` on, as bfloat16. `places` says where in `out` the
    rows begin, and how far apart they are there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums = _sum_products(context, builder, signature, arguments)
        shares, data = (_data(context, builder, signature, arguments, at) for at in (5, 7))
        shares = builder.bitcast(shares, ir.FloatType().as_pointer())
        data = builder.bitcast(data, ir.IntType(16).as_pointer())
        none = ir.Constant(FLOATS, ir.Undefined)
        _, _, count = cgutils.unpack_tuple(builder, arguments[1])
        place, step = cgutils.unpack_tuple(builder, arguments[8])
        places = _row_starts(builder, place, step, count)
        numbers = _row_starts(builder, arguments[6], _whole(1), count)
        for totals, at, number in zip(sums, places, numbers, strict=True):
            share = builder.load(builder.gep(shares, [number]))
            share = builder.insert_element(none, share, ir.Constant(WORD, 0))
            share = _mixed(builder, [0] * WIDTH, share, none)
            for half, total in enumerate(totals):
                stored = _nearest(builder, builder.fmul(total, share))
                half_at = builder.add(at, _whole(WIDTH * half))
                builder.store(stored, _vector_at(builder, data, half_at, HALVES), align=2)
        return context.get_dummy_value()

    kinds = left, TRIPLE, right, PAIR, PAIR, shares, types.int64, out, PAIR
    return types.void(*kinds), generate


def _row_starts(builder: Any, start: Any, step: Any, count: Any) -> Sequence[Any]:
    last = builder.sub(count, _whole(1))
    return [
        builder.add(start, builder.mul(step, _least(builder, _whole(row), last)))
        for row in range(DOT_ROWS)
    ]


def _nearest(builder: Any, numbers: Any) -> Any:
    """Float32 as bfloat16, to even; see `rounded`."""

    def constant(number: int) -> Any:
        return ir.Constant(WORDS, [number] * WIDTH)

    bits = builder.bitcast(numbers, WORDS)
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    bits = builder.add(builder.add(bits, odd), constant(0x7FFF))
    return builder.trunc(builder.lshr(bits, constant(16)), HALVES)
