"""`Bucket`: the few sizes a packed batch may have on a GPU, so that each can be captured once.

A batch is put into a bucket as integers: its rows are filled up with padding tokens that belong
to no sequence, and its texts with empty ones. It knows sizes and no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Bucket",
    "PackedIntegers",
    "bucket_for",
    "fill_parts",
    "longest_for",
    "power_of",
    "query_buckets",
]

SMALLEST_ROWS = 64  # below a few hundred rows a GPU takes the same time for any number


DOUBLING_ROWS = 1024  # up to here sizes double, above they grow by an eighth at most


TEXTS_FACTOR = 8  # an empty text costs attention a block that ends at once


SHORTEST_LONGEST = 128  # rows of queries that the attention kernel takes as one block


FIXED_LONGEST = 512  # what most models read at most; more would cost attention empty blocks


QUERY_ROWS = tuple(SMALLEST_ROWS << doubling for doubling in range(5))


ROWS_OF_ONE = 3  # of those, for a single query: up to 255 tokens


IntArray = npt.NDArray[np.int64]


class PackedIntegers(NamedTuple):
    """Everything a forward pass of a bucket reads, as views of one array; all int64 there."""

    ids: npt.NDArray[np.integer]
    """`[rows]`: the texts end to end, then padding."""
    positions: IntArray
    """`[rows]`: from 0 in every text."""
    starts: IntArray
    """`[texts]`; an empty text starts where the last real one ends."""
    lengths: IntArray
    """`[texts]`; 0 for an empty text."""
    prompt_lengths: IntArray
    """`[texts]`."""
    edges: IntArray
    """`[texts + 1]`: `cu_seqlens`."""


@dataclass(frozen=True, order=True)
class Bucket:
    """Rows, texts and the longest text there is room for."""

    rows: int
    texts: int
    longest: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the parts of `PackedIntegers`, in their order."""
        return (self.rows, self.rows, self.texts, self.texts, self.texts, self.texts + 1)

    def fill(
        self,
        integers: IntArray,
        ids: npt.NDArray[np.integer],
        lengths: IntArray,
        prompt_lengths: IntArray,
        *,
        pad_id: int,
    ) -> None:
        """Write texts, end to end in `ids`, into an int64 array of `sum(sizes)`.

        There is at least one row more than tokens, for the empty texts to point at.
        """
        tokens, texts = len(ids), len(lengths)
        assert tokens < self.rows
        assert texts <= self.texts
        assert int(lengths.max()) <= self.longest
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(tokens) - np.repeat(starts, lengths)
        fill_parts(
            integers,
            self.sizes,
            PackedIntegers(ids, positions, starts, lengths, prompt_lengths, starts),
            (pad_id, 0, tokens, 0, 0, tokens),
        )


def fill_parts(
    integers: IntArray,
    sizes: Sequence[int],
    parts: Sequence[npt.NDArray[np.integer]],
    fillers: Sequence[int],
) -> None:
    """Write parts end to end, each filled up to its size with a number of its own."""
    rooms = np.split(integers, np.cumsum(sizes)[:-1])
    for room, part, filler in zip(rooms, parts, fillers, strict=True):
        room[: len(part)], room[len(part) :] = part, filler


def bucket_for(
    tokens: int,
    texts: int,
    longest: int,
    *,
    invariant_rows: int | None = None,
    max_length: int | None = None,
) -> Bucket:
    """The smallest bucket for a batch.

    With `invariant_rows`, its rows are a multiple of them, and there is always room for a text of
    `max_length` tokens, the longest that the model reads, or of `FIXED_LONGEST`.
    """
    if invariant_rows is None:
        rows = _rows(tokens + 1)
    else:
        rows = -(-(tokens + 1) // invariant_rows) * invariant_rows
    return Bucket(
        rows,
        power_of(texts, least=TEXTS_FACTOR, factor=TEXTS_FACTOR),
        longest_for(longest, is_fixed=invariant_rows is not None, max_length=max_length),
    )


def longest_for(longest: int, *, is_fixed: bool, max_length: int | None) -> int:
    """The longest text that attention makes room for; where it `is_fixed`, the same for most."""
    if is_fixed:
        longest = max(longest, min(FIXED_LONGEST, max_length or FIXED_LONGEST))
    return power_of(longest, least=SHORTEST_LONGEST, factor=2)


def query_buckets(most_tokens: int, most_texts: int, **options: int | None) -> list[Bucket]:
    """The buckets of one query and of `most_texts`, smallest first; options of `bucket_for`."""
    sizes = [size for size in QUERY_ROWS if size <= most_tokens]
    found = {bucket_for(size - 1, 1, size - 1, **options) for size in sizes[:ROWS_OF_ONE]}
    if most_texts > 1:
        fitting = [size for size in sizes if size > most_texts]
        found |= {bucket_for(size - 1, most_texts, 1, **options) for size in fitting}
    return sorted(found)


def _rows(least: int) -> int:
    if least <= DOUBLING_ROWS:
        return power_of(least, least=SMALLEST_ROWS, factor=2)
    step = (1 << ((least - 1).bit_length() - 1)) // 8
    return -(-least // step) * step


def power_of(value: int, *, least: int, factor: int) -> int:
    """The least of `least`, `least × factor`, … that is not below the value."""
    size = least
    while size < value:
        size *= factor
    return size
