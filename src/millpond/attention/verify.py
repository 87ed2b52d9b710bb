"""Whether attention within a long text is batch-invariant, on any number of threads.

A model is checked at load with texts that are short, for the sake of time. What its attention does
with long ones depends on few sizes, and is tried by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..cpu.openmp import limited_threads
from .packed import PackedSequences

__all__ = ["AttentionShape", "attention_is_invariant", "padded_attention_is_invariant"]

# torch's kernel takes more queries at a time from 192 and from 768 on, and keys in blocks of 512.
LENGTHS = (200, 800)
TEXTS = 3
MOST_NUMBERS = 2**22  # of queries, so that a check takes milliseconds
PADDED = (4, 96, 64)  # heads, tokens and head size that speak for the attention of padded models


class AttentionShape(NamedTuple):
    """Sizes of a layer's attention."""

    heads: int
    key_heads: int
    size: int
    causal: bool


def attention_is_invariant(
    shapes: Iterable[AttentionShape],
    dtype: torch.dtype,
    *,
    longest: int | None,
    threads: Sequence[int],
) -> bool:
    """Whether packed attention of these sizes is batch-invariant on a CPU, for long texts.

    `longest` is the longest text in tokens.
    """
    room = longest or LENGTHS[-1]
    return all(
        _is_invariant(shape, dtype, length, tuple(threads))
        for shape in shapes
        for length in LENGTHS
        if length <= room and shape.heads * shape.size * length * TEXTS <= MOST_NUMBERS
    )


@cache  # what is found is the processor's, and the same for every model
@torch.inference_mode()
def _is_invariant(
    shape: AttentionShape, dtype: torch.dtype, length: int, threads: tuple[int, ...]
) -> bool:
    heads, key_heads, size, causal = shape
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(count, TEXTS * length, size, generator=generator).to(dtype)
        for count in (heads, key_heads, key_heads)
    )

    def attended(first: int, texts: int) -> Tensor:
        rows = slice(first * length, (first + texts) * length)
        sequences = PackedSequences.of(np.full(texts, length, dtype=np.int64))
        return sequences.attend(
            query[:, rows], key[:, rows], value[:, rows], scaling=None, window=None, causal=causal
        )

    found = []
    for count in threads:
        with limited_threads(count):
            found.append(attended(0, TEXTS))
            found.append(torch.cat([attended(text, 1) for text in range(TEXTS)]))
    return all(torch.equal(each, found[0]) for each in found)


@cache
@torch.inference_mode()
def padded_attention_is_invariant(dtype: torch.dtype, threads: tuple[int, ...]) -> bool:
    """Whether the products of padded attention give a text alone the bits that it has among others.

    torch reads the heads of one text where they stand and copies those of several. On processors
    without bfloat16 of their own these are two kernels, which round differently. Every sum is one
    of pairs that cancel, in a mixed order, so what is left of it is rounding.
    """
    heads, tokens, size = PADDED
    generator = torch.Generator().manual_seed(0)

    def cancelling(rows: int, columns: int, sign: int) -> Tensor:
        half = torch.randn(rows, heads, columns // 2, generator=generator)
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(1))
        return torch.cat([half, sign * half], dim=2)[:, :, order].to(dtype)

    def by_heads(rows: Tensor, texts: int) -> Tensor:
        return rows.expand(texts, *rows.shape).contiguous().transpose(1, 2)

    query, key = cancelling(tokens, size, 1), cancelling(tokens, size, -1)
    weights, value = cancelling(tokens, tokens, 1), cancelling(size, tokens, -1)
    found: list[tuple[Tensor, Tensor]] = []
    for count in threads:
        with limited_threads(count):
            for texts in (1, 2, TEXTS):
                keys = by_heads(key, texts).transpose(-1, -2)
                scores = torch.matmul(by_heads(query, texts), keys)
                values = by_heads(value.permute(2, 1, 0), texts)
                summed = torch.matmul(by_heads(weights, texts).contiguous(), values)
                found += zip(scores, summed, strict=True)
    return all(torch.equal(a, b) for each in found for a, b in zip(each, found[0], strict=True))
