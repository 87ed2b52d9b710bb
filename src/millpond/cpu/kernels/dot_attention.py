"""Attention of whole sequences in bfloat16, by a processor's dot products.

torch's kernel does a quarter of what such a processor can, in heads of 32 and 64 elements. Here 32
queries at a time are multiplied with all keys of their sequence, and their scores are used while
they are in the cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiling import c_function, inline, use_widest_vectors
from .dot_products import DOT_ROWS, interleave, multiply_pairs, transpose, weigh_pairs
from .numbers import ONE
from .softmax import LOG2_E, LOWEST, put_weights
from .tiles import ROWS_AT_ONCE

__all__ = ["AttentionArguments", "attend_by_dot_products", "room_bytes"]


class AttentionArguments(NamedTuple):
    """What `attend_by_dot_products` reads, as int64 one after the other.

    `…_at` are addresses. Queries, keys and values are bfloat16, those of a head in a run; a step is
    how many words of 32 bits the next row or head is away.
    """

    query_at: int
    query_row_step: int
    query_head_step: int
    key_at: int
    key_row_step: int
    key_head_step: int
    value_at: int
    value_row_step: int
    value_head_step: int
    heads: int
    heads_a_key: int
    """Neighbours that share keys and values."""
    size: int
    """Elements of a head, a multiple of 32."""
    scaling: int
    """What scores are multiplied by, the bits of a float64."""
    window: int
    """A token sees those that are fewer positions away."""
    starts_at: int
    """Of each sequence: its first row, int64."""
    lengths_at: int
    places_at: int
    """Its first row in what comes of it, int64."""
    sequences: int
    longest: int
    queries: int
    """Tokens of each sequence that attend, the first ones."""
    out_at: int
    """Bfloat16 `[…, heads, size]`."""
    room_at: int
    """`room_bytes` for each thread, from a cache line on."""
    room_bytes: int
    next_head: int = 0
    """Counts the heads of all sequences that a thread has taken."""
    next_thread: int = 0


def _places(*names: str) -> list[int]:
    return [AttentionArguments._fields.index(name) for name in names]


COUNT = len(AttentionArguments._fields)
QUERY, KEY, VALUE, OUT, ROOM = _places("query_at", "key_at", "value_at", "out_at", "room_at")
STARTS, LENGTHS, PLACES = _places("starts_at", "lengths_at", "places_at")
HEADS, HEADS_A_KEY, SIZE, SCALING, WINDOW = _places(
    "heads", "heads_a_key", "size", "scaling", "window"
)
SEQUENCES, LONGEST, QUERIES = _places("sequences", "longest", "queries")
ROOM_BYTES, NEXT_HEAD, NEXT_THREAD = _places("room_bytes", "next_head", "next_thread")

# Rows that are a power of two apart would share few lines of the cache.
MORE_SCORES, MORE_WEIGHTS = 16, 32


def room_bytes(longest: int, size: int) -> int:
    """What a thread needs for sequences of that length at most and heads of that size."""
    keys = -(-longest // ROWS_AT_ONCE) * ROWS_AT_ONCE
    rows = 4 * (keys + MORE_SCORES) + 2 * (keys + MORE_WEIGHTS)
    return ROWS_AT_ONCE * rows + 4 * keys * size


@intrinsic
def _address(context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@inline
def _array(address: Any, shape: Any, kind: Any) -> Any:
    return numba.carray(_address(address), shape, kind)


@intrinsic
def _next(context: Any, counters: Any, place: Any) -> Any:
    """What a counter was, which is one more for the thread that asks next."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = builder.gep(array.data, [arguments[1]])
        return builder.atomic_rmw("add", at, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counters, types.int64), generate


@inline
def _put_keys(rows: Any, length: Any, half: Any, keys: Any) -> None:
    """Keys as panels `[keys / 16, size / 32, 16 pairs of numbers, 16 keys]`, to a whole 32."""
    pairs, start, step = rows
    for key in range(0, (length + 31) // 32 * 32, 16):
        first = min(key, length - 1)
        for pair in range(0, half, 16):
            at, panel = start + step * first + pair, half * key + 16 * pair
            transpose(pairs, at, step, length - first, keys, panel)


@inline
def _put_values(rows: Any, length: Any, half: Any, values: Any) -> None:
    """Values as panels `[keys / 32, size / 16, 16 pairs of keys, 16 numbers]`, to a whole 32."""
    pairs, start, step = rows
    for pair in range((length + 31) // 32 * 16):
        first = start + step * min(2 * pair, length - 1)
        second = start + step * min(2 * pair + 1, length - 1)
        panel = 32 * half * (pair // 16) + 16 * (pair % 16)
        for column in range(0, half, 16):
            interleave(pairs, first + column, second + column, values, panel + 32 * column)


@inline
def _hide(scores: Any, count: Any, columns: Any, place: Any, length: Any, window: Any) -> None:
    """Of the keys from the first one on, those that a query does not see; `place` is the first
    query's and the first key's."""
    query, key = place
    for i in range(count):
        first = max(0, query + i - window + 1 - key)
        stop = min(length, query + i + window) - key
        for j in range(first):
            scores[i, j] = LOWEST
        for j in range(stop, columns):
            scores[i, j] = LOWEST


@inline
def _attend_head(
    rows: Any, place: Any, half: Any, window: Any, to_power: Any, room: Any, out: Any
) -> None:
    """One head of one sequence, of size twice `half`.

    `rows` are the memory of queries, keys and values, where they begin and how far they are apart;
    `place` is the sequence's length, how many queries it has, and where in `out` the first goes and
    how far they are apart there, in numbers.
    """
    (pairs, query, query_step), keys_at, values_at = rows
    length, queries, out_at, out_step = place
    scores, weights, weight_pairs, keys, values, shares = room
    tiles = half // 16
    _put_keys(keys_at, length, half, keys)
    _put_values(values_at, length, half, values)
    for row in range(0, queries, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, queries - row)
        first = max(0, row - window + 1) // 32
        blocks = (min(length, row + count + window - 1) + 31) // 32 - first
        for i in range(0, count, DOT_ROWS):
            left = (query + query_step * (row + i), query_step, count - i)
            for block in range(blocks):
                panel = 32 * half * (first + block)
                at = i * scores.shape[1] + 32 * block
                halves = (panel, panel + 16 * half)
                multiply_pairs(pairs, left, keys, halves, (tiles, 256), scores, at)
        columns = 32 * blocks
        _hide(scores, count, columns, (row, 32 * first), length, window)
        put_weights(scores, count, columns, to_power, weights, shares)
        for i in range(count):
            shares[i] = ONE / shares[i]
        for i in range(0, count, DOT_ROWS):
            left = (i * weight_pairs.shape[1], weight_pairs.shape[1], count - i)
            for column in range(tiles):
                panel = 32 * half * first + 512 * column
                steps = (blocks, 512 * tiles)
                places = (out_at + out_step * (row + i) + 32 * column, out_step)
                halves = (panel, panel + 256)
                weigh_pairs(weight_pairs, left, values, halves, steps, shares, i, out, places)


@inline
def _rows_of(given: Any, which: Any, row: Any, head: Any) -> Any:
    """The memory of queries, keys or values of a head, its row's place there, and the step."""
    step = given[which + 1]
    memory = _array(given[which], 1, np.uint32)
    return memory, step * row + given[which + 2] * head, step


def _attend(address: Any) -> None:
    """Attention of sequences to themselves, by as many threads as call this with an address of
    `AttentionArguments`. Each takes heads until there are none left.

    A row's bits depend on its sequence alone.
    """
    use_widest_vectors()
    given = numba.carray(address, COUNT, np.int64)
    heads, size, keys = given[HEADS], given[SIZE], (given[LONGEST] + 31) // 32 * 32
    out = _array(given[OUT], 1, np.uint16)
    to_power = np.float32(given[SCALING : SCALING + 1].view(np.float64)[0]) * LOG2_E
    starts = _array(given[STARTS], given[SEQUENCES], np.int64)
    lengths = _array(given[LENGTHS], given[SEQUENCES], np.int64)
    places = _array(given[PLACES], given[SEQUENCES], np.int64)
    at = given[ROOM] + given[ROOM_BYTES] * _next(given, NEXT_THREAD)
    scores = _array(at, (ROWS_AT_ONCE, keys + MORE_SCORES), np.float32)
    at += 4 * ROWS_AT_ONCE * (keys + MORE_SCORES)
    weights = _array(at, (ROWS_AT_ONCE, keys + MORE_WEIGHTS), np.uint16)
    weight_pairs = _array(at, (ROWS_AT_ONCE, (keys + MORE_WEIGHTS) // 2), np.uint32)
    at += 2 * ROWS_AT_ONCE * (keys + MORE_WEIGHTS)
    panels = _array(at, keys * size, np.uint32)
    shares = np.empty(ROWS_AT_ONCE, np.float32)
    room = scores, weights, weight_pairs, panels[: keys * size // 2], panels[keys * size // 2 :]
    number = _next(given, NEXT_HEAD)
    while number < heads * starts.size:
        s, head = number // heads, number % heads
        key_head = head // given[HEADS_A_KEY]
        rows = (
            _rows_of(given, QUERY, starts[s], head),
            _rows_of(given, KEY, starts[s], key_head),
            _rows_of(given, VALUE, starts[s], key_head),
        )
        queries, width = min(lengths[s], given[QUERIES]), heads * size
        place = lengths[s], queries, width * places[s] + size * head, width
        _attend_head(rows, place, size // 2, given[WINDOW], to_power, (*room, shares), out)
        number = _next(given, NEXT_HEAD)


@cache
def attend_by_dot_products() -> int:
    """The address of a function that takes that of `AttentionArguments`."""
    address: int = c_function(_attend).address
    return address
