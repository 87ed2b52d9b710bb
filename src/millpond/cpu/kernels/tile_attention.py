"""Attention of whole sequences in bfloat16, by a processor's matrix units."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import Array, inline, kernel, use_widest_vectors
from .numbers import ONE, rounded
from .softmax import LOG2_E, put_weights
from .tiles import (
    ROWS_AT_ONCE,
    TILE,
    clear_sums,
    configure,
    load_tile,
    multiply_all_bfloat16,
    release,
    store_sums,
)

__all__ = ["attend"]


@inline
def _put_keys(joined: Any, start: Any, length: Any, place: Any, half: Any, keys: Any) -> None:
    """Keys as tiles `[keys / 16, size / 32, 16 pairs of numbers, 16 keys]`, pairs as uint32."""
    keys[-1] = 0
    keys[-2] = 0
    for key in range(length):
        tile, n = key // 16, key % 16
        for step in range(half // 16):
            for pair in range(16):
                keys[tile, step, 16 * pair + n] = joined[start + key, place + 16 * step + pair]


@inline
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


@kernel
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
    use_widest_vectors()
    width = out.shape[1]
    heads, half, tiles = width // size, size // 2, size // 32
    to_power = np.float32(scaling * LOG2_E)
    totals = np.empty(ROWS_AT_ONCE, np.float32)
    sums = scores.reshape(-1)
    stride, weight_stride = 4 * scores.shape[1], 2 * weights.shape[1]
    configure(palette)
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
                    clear_sums()
                    for k in range(tiles):
                        left = (2 * block * tiles + k) * TILE
                        load_tile(4, query, 64 * k, 2 * size)
                        load_tile(5, query, 64 * k + 32 * size, 2 * size)
                        load_tile(6, keys, left, 64)
                        load_tile(7, keys, left + tiles * TILE, 64)
                        multiply_all_bfloat16()
                    store_sums(scores, 128 * block, stride)
                put_weights(scores, count, length, to_power, weights, totals)
                for column in range(0, 2 * tiles, 2):
                    clear_sums()
                    for block in range(blocks):
                        left = (2 * block * tiles + column) * TILE
                        load_tile(4, weights, 64 * block, weight_stride)
                        load_tile(5, weights, 64 * block + 16 * weight_stride, weight_stride)
                        load_tile(6, values, left, 64)
                        load_tile(7, values, left + TILE, 64)
                        multiply_all_bfloat16()
                    store_sums(scores, 0, 128)
                    for i in range(count):
                        share = ONE / totals[i]
                        for d in range(32):
                            number = sums[32 * i + d] * share
                            out[start + row + i, place + 16 * column + d] = rounded(number, out)
    release()
