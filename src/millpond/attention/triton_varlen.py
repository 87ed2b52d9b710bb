"""Attention over sequences of different lengths as one Triton kernel, for texts.

It does what torch's variable-length kernel does. Texts of a few dozen to a few hundred tokens fill
the blocks of 128 queries and keys that one works with badly; here a block has 64 queries. Where the
next product runs in float8, the kernel writes e4m3 itself. Every sequence is computed by itself,
block by block in one order, so that its bits do not depend on the others.

On an H100, 32,768 tokens, microseconds here and in torch's kernel (FlashAttention 2 of torch 2.11):
12 heads of 64, texts with a median of 70 tokens 102 and 185, chunks of 256 to 512 193 and 255,
texts of 2,048 588 and 687, of 8,192 2,387 and 2,761; 12 heads of 32, 71 and 155, 144 and 208, 449
and 531, 1,762 and 1,988; 16 heads of 128 that share keys in pairs, causal, 213 and 346, 310 and
459, 868 and 928, 3,132 and 3,306. Since then keys that every query of a block sees are multiplied
without a mask in texts of more than 512, and those of more than 2,048 with heads of 128 go in
blocks of 128 queries and 128 keys: on an H200 four texts of 8,192 take 2,310 µs, before 3,030.

Import this module only where there is a use for it: it needs Triton.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["SIZES", "attend"]

SIZES = (32, 64, 128)  # of heads
SHORT, MIDDLE = 512, 2048  # the longest sequences for which blocks of that name are quickest


class Blocks(NamedTuple):
    """What one program computes at a time, and how many warps do it."""

    queries: int
    keys: int
    warps: int


SHORT_BLOCKS, MIDDLE_BLOCKS, LONG_BLOCKS = Blocks(64, 32, 4), Blocks(64, 64, 4), Blocks(128, 128, 8)
LONG_SIZE = 128  # heads that long blocks pay for
LONG_BYTES = 229_376  # of a multiprocessor's shared memory, which those take
LOG2_E = 1.4426950408889634


@triton.jit
def _attend_keys(
    q: tl.tensor,
    key_at: tl.tensor,
    value_at: tl.tensor,
    key_token: tl.tensor,
    value_token: tl.tensor,
    key_start: tl.tensor,
    keys: tl.tensor,
    position: tl.tensor,
    scaling: tl.tensor,
    first_key: tl.tensor,
    last_key: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    found: tl.tensor,
    SIZE: tl.constexpr,
    REACH: tl.constexpr,
    CAUSAL: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Block by block of keys; without `MASKED` every query sees all of them."""
    column = tl.arange(0, SIZE)
    for start in range(first_key, last_key, KEYS):
        place = start + tl.arange(0, KEYS)
        token = (key_start + place).to(tl.int64)
        k_at = key_at + token[None, :] * key_token + column[:, None]
        v_at = value_at + token[:, None] * value_token + column[None, :]
        if MASKED:
            inside = place < keys
            k = tl.load(k_at, mask=inside[None, :], other=0.0)
        else:
            k = tl.load(k_at)
        scores = tl.dot(q, k)
        if MASKED:
            sees = inside[None, :]
            if CAUSAL:
                sees = sees & (place[None, :] <= position[:, None])
            if REACH >= 0:
                sees = sees & (position[:, None] - place[None, :] <= REACH)
                if not CAUSAL:
                    sees = sees & (place[None, :] - position[:, None] <= REACH)
            # Scaled before it is masked: fused with the subtraction below, the scaling of -1e30
            # would leave its rounding, which is more than any score.
            scores = tl.where(sees, scores * scaling, -1e30)
            new_most = tl.maximum(most, tl.max(scores, axis=1))
            weights = tl.exp2(scores - new_most[:, None])
        else:
            new_most = tl.maximum(most, tl.max(scores, axis=1) * scaling)
            weights = tl.exp2(scores * scaling - new_most[:, None])
        fade = tl.exp2(most - new_most)
        total = total * fade + tl.sum(weights, axis=1)
        v = tl.load(v_at, mask=inside[:, None], other=0.0) if MASKED else tl.load(v_at)
        found = tl.dot(weights.to(v.dtype), v, found * fade[:, None])
        most = new_most
    return most, total, found


# Strides are the model's, so that they make no other kernel from batch to batch.
@triton.jit
def _attend(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    out: tl.tensor,
    query_edges: tl.tensor,
    key_edges: tl.tensor,
    scaling: tl.tensor,
    out_scale: tl.tensor,
    query_token: tl.tensor,
    key_token: tl.tensor,
    value_token: tl.tensor,
    out_token: tl.tensor,
    query_head: tl.tensor,
    key_head: tl.tensor,
    value_head: tl.tensor,
    SIZE: tl.constexpr,
    SHARED: tl.constexpr,
    REACH: tl.constexpr,
    CAUSAL: tl.constexpr,
    FLOAT8: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    text = tl.program_id(2)
    head = tl.program_id(1)
    first_query = tl.program_id(0) * QUERIES
    query_start = tl.load(query_edges + text)
    queries = tl.load(query_edges + text + 1) - query_start
    if first_query >= queries:
        return
    key_start = tl.load(key_edges + text)
    keys = tl.load(key_edges + text + 1) - key_start
    ahead = keys - queries  # the last query stands at the last key
    row = first_query + tl.arange(0, QUERIES)
    column = tl.arange(0, SIZE)
    at = query + (query_start + row).to(tl.int64)[:, None] * query_token + head * query_head
    q = tl.load(at + column[None, :], mask=(row < queries)[:, None], other=0.0)
    position = row + ahead
    first_key = 0
    last_key = keys
    if CAUSAL:
        last_key = tl.minimum(keys, first_query + QUERIES + ahead)
    if REACH >= 0:
        first_key = tl.maximum(0, first_query + ahead - REACH) // KEYS * KEYS
        if not CAUSAL:
            last_key = tl.minimum(keys, first_query + QUERIES + ahead + REACH)
    key_at = key + (head // SHARED) * key_head
    value_at = value + (head // SHARED) * value_head
    most = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, SIZE], tl.float32)
    if SPLIT:
        seen_by_all = keys
        if CAUSAL:
            seen_by_all = tl.minimum(keys, first_query + ahead + 1)
        first_masked = tl.maximum(seen_by_all, 0) // KEYS * KEYS
        most, total, found = _attend_keys(
            q,
            key_at,
            value_at,
            key_token,
            value_token,
            key_start,
            keys,
            position,
            scaling,
            first_key,
            first_masked,
            most,
            total,
            found,
            SIZE=SIZE,
            REACH=REACH,
            CAUSAL=CAUSAL,
            KEYS=KEYS,
            MASKED=False,
        )
        first_key = first_masked
    most, total, found = _attend_keys(
        q,
        key_at,
        value_at,
        key_token,
        value_token,
        key_start,
        keys,
        position,
        scaling,
        first_key,
        last_key,
        most,
        total,
        found,
        SIZE=SIZE,
        REACH=REACH,
        CAUSAL=CAUSAL,
        KEYS=KEYS,
        MASKED=True,
    )
    found = found / total[:, None]
    if FLOAT8:
        found = (found * out_scale).to(tl.float8e4nv)
    at = out + (query_start + row).to(tl.int64)[:, None] * out_token + head * SIZE
    tl.store(at + column[None, :], found, mask=(row < queries)[:, None])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_boundaries: Tensor,
    key_boundaries: Tensor,
    longest_query: int,
    scaling: float | None,
    window: int | None,
    causal: bool,
    deterministic: bool = False,
    float8_scale: float | None = None,
) -> Tensor:
    """Attention within each sequence, `[total, heads, size]` in and out.

    The options are those of `attend_varlen`. Rows that belong to no sequence stay unwritten. With
    `float8_scale` the result, times it, comes in e4m3. If `deterministic`, a sequence's bits do not
    depend on the longest one.
    """
    total, heads, size = query.shape
    if size not in SIZES or heads % key.shape[1]:
        raise ValueError(f"heads of {size} are not among {SIZES}")
    if any(rows.stride(2) != 1 for rows in (query, key, value)):
        raise ValueError("the numbers of a head lie end to end")
    dtype = query.dtype if float8_scale is None else torch.float8_e4m3fn
    out = torch.empty(total, heads, size, dtype=dtype, device=query.device)
    scaling = 1 / math.sqrt(size) if scaling is None else scaling
    blocks = MIDDLE_BLOCKS if deterministic else _blocks(longest_query, size, query.device)
    texts = len(query_boundaries) - 1
    _attend[(triton.cdiv(longest_query, blocks.queries), heads, texts)](
        query,
        key,
        value,
        out,
        query_boundaries,
        key_boundaries,
        scaling * LOG2_E,
        float8_scale or 1.0,
        *(query.stride(0), key.stride(0), value.stride(0), out.stride(0)),
        *(query.stride(1), key.stride(1), value.stride(1)),
        SIZE=size,
        SHARED=heads // key.shape[1],
        REACH=-1 if window is None else window - 1,
        CAUSAL=causal,
        FLOAT8=float8_scale is not None,
        QUERIES=blocks.queries,
        KEYS=blocks.keys,
        SPLIT=blocks is not SHORT_BLOCKS and window is None and not deterministic,
        num_warps=blocks.warps,
        num_stages=3,
    )
    return out


def _blocks(longest: int, size: int, device: torch.device) -> Blocks:
    """The quickest for heads of a size in sequences up to that long."""
    if longest <= SHORT:
        return SHORT_BLOCKS
    is_long = longest > MIDDLE and size == LONG_SIZE
    return LONG_BLOCKS if is_long and _shared_bytes(device) >= LONG_BYTES else MIDDLE_BLOCKS


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """What a program may have of a multiprocessor's shared memory."""
    properties: Any = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 0))
