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
from .packed import AttentionOptions, PackedSequences

__all__ = ["AttentionShape", "attention_is_invariant", "fewest_padded_texts"]

# torch's kernel takes more queries at a time from 192 and from 768 on, and keys in blocks of 512.
LENGTHS = (200, 800)
TEXTS = 3
MOST_NUMBERS = 2**22  # of queries, so that a check takes milliseconds
PADDED_HEADS = 4
PADDED = ((18, 16), (27, 64), (40, 32), (96, 64))
"""Tokens and head sizes that speak for the attention of padded models. Batches of shorter texts
always have several rows (`FEWEST_ROWS`)."""


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
    options = AttentionOptions(None, None, causal)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(count, TEXTS * length, size, generator=generator).to(dtype)
        for count in (heads, key_heads, key_heads)
    )

    def attended(first: int, texts: int) -> Tensor:
        rows = slice(first * length, (first + texts) * length)
        sequences = PackedSequences.of(np.full(texts, length, dtype=np.int64))
        return sequences.attend(query[:, rows], key[:, rows], value[:, rows], options)

    found = []
    for count in threads:
        with limited_threads(count):
            found.append(attended(0, TEXTS))
            found.append(torch.cat([attended(text, 1) for text in range(TEXTS)]))
    return all(torch.equal(each, found[0]) for each in found)


@cache
@torch.inference_mode()
def fewest_padded_texts(dtype: torch.dtype, threads: tuple[int, ...]) -> int | None:
    """How many texts a padded batch has at least, so that a text's products have one result.

    torch reads the heads of one text where they stand and copies those of several, and may
    multiply the two by kernels that round differently: then it is 2. None where the results of 2
    and 3 texts differ too.
    """
    found = [_padded_products(*sizes, dtype, threads) for sizes in PADDED]
    for fewest in (1, 2):
        if all(_alike(products, fewest) for products in found):
            return fewest
    return None


def _padded_products(
    tokens: int, size: int, dtype: torch.dtype, threads: tuple[int, ...]
) -> list[tuple[int, Tensor, Tensor]]:
    """The first text's scores and sums of values, among that many texts, on each thread count.

    Every sum is one of pairs that cancel, in a mixed order, so what is left of it is rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def cancelling(rows: int, columns: int, sign: int) -> Tensor:
        half = torch.randn(rows, PADDED_HEADS, -(-columns // 2), generator=generator)
        order = torch.randperm(2 * half.shape[2], generator=torch.Generator().manual_seed(1))
        return torch.cat([half, sign * half], dim=2)[:, :, order[:columns]].to(dtype)

    def by_heads(rows: Tensor, texts: int) -> Tensor:
        return rows.expand(texts, *rows.shape).contiguous().transpose(1, 2)

    query, key = cancelling(tokens, size, 1), cancelling(tokens, size, -1)
    weights, value = cancelling(tokens, tokens, 1), cancelling(size, tokens, -1)
    found = []
    for count in threads:
        with limited_threads(count):
            for texts in range(1, TEXTS + 1):
                keys = by_heads(key, texts).transpose(-1, -2)
                scores = torch.matmul(by_heads(query, texts), keys)
                values = by_heads(value.permute(2, 1, 0), texts)
                summed = torch.matmul(by_heads(weights, texts).contiguous(), values)
                found.append((texts, scores, summed))
    return found


def _alike(products: list[tuple[int, Tensor, Tensor]], fewest: int) -> bool:
    """Whether every text of batches of at least that many has one result."""
    rows = [
        row
        for texts, scores, summed in products
        if texts >= fewest
        for row in zip(scores, summed, strict=True)
    ]
    return all(torch.equal(a, b) for row in rows for a, b in zip(row, rows[0], strict=True))
