"""`PrefixBucket`: the few sizes of a packed batch on a GPU that uses cached prefixes.

Like `Bucket`, with room for the keys of prefixes too, for what is read from the cache and for what
is kept in it. What is not needed of that room reads an unused slot and writes to the null slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...attention.prefix import PrefixIndex
from .buckets import (
    DOUBLING_ROWS,
    SHORTEST_LONGEST,
    SMALLEST_ROWS,
    TEXTS_FACTOR,
    fill_parts,
    power_of,
)

__all__ = ["PrefixBucket", "PrefixedIntegers", "prefix_bucket_for"]

STEPS = 4  # from one power of two to the next


SLOTS_FACTOR = 8  # copying a few thousand slots takes a GPU as long as copying one


IntArray = npt.NDArray[np.int64]


class PrefixedIntegers(NamedTuple):
    """Everything a forward pass of a bucket reads, as views of one array; all int64."""

    ids: IntArray
    """`[rows]`: what is computed of the texts, end to end, then padding."""
    positions: IntArray
    """`[rows]`: of each token in its text."""
    starts: IntArray
    """`[texts]`; an empty text starts where the last real one ends."""
    lengths: IntArray
    """`[texts]`: tokens that are computed; 0 for an empty text."""
    prompt_lengths: IntArray
    """`[texts]`."""
    query_edges: IntArray
    """`[texts + 1]`: `cu_seqlens` of queries, and below of keys."""
    key_edges: IntArray
    order: IntArray
    """`[keys]`: each key's place among those read and then those of the rows."""
    read: IntArray
    """`[read]`: slots of the cache."""
    kept: IntArray
    """`[kept]`: rows whose keys and values go into the cache."""
    written: IntArray
    """`[kept]`: the slots they go into."""


@dataclass(frozen=True, order=True)
class PrefixBucket:
    """Rows, texts and keys, the longest of each text there is room for, and slots."""

    rows: int
    texts: int
    longest: int
    keys: int
    longest_key: int
    read: int
    kept: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the parts of `PrefixedIntegers`, in their order."""
        of_texts = (self.texts, self.texts, self.texts, self.texts + 1, self.texts + 1)
        return (self.rows, self.rows, *of_texts, self.keys, self.read, self.kept, self.kept)

    def fill(
        self,
        integers: IntArray,
        ids: IntArray,
        positions: IntArray,
        prompt_lengths: IntArray,
        index: PrefixIndex,
        *,
        pad_id: int,
        null_slot: int,
    ) -> None:
        """Write a batch into an int64 array of `sum(sizes)`.

        There is at least one row more than tokens: empty texts point at it, and it is what goes
        into the null slot.
        """
        assert index.joined is not None
        order, query_edges, key_edges = index.joined
        tokens, keys, read = len(ids), len(order), len(index.read)
        assert tokens < self.rows
        order = np.where(
            order < read, order, order + (self.read - read)
        )  # rows come after the room
        fill_parts(
            integers,
            self.sizes,
            PrefixedIntegers(
                ids=ids,
                positions=positions,
                starts=query_edges[:-1],
                lengths=np.diff(query_edges),
                prompt_lengths=prompt_lengths,
                query_edges=query_edges,
                key_edges=key_edges,
                order=order,
                read=index.read,
                kept=index.rows,
                written=index.written,
            ),
            # Of the slots that are read for no text, and of their keys, any would do.
            (pad_id, 0, tokens, 0, 0, tokens, keys, 0, null_slot, tokens, null_slot),
        )


def prefix_bucket_for(index: PrefixIndex) -> PrefixBucket:
    """The smallest bucket for a batch."""
    assert index.joined is not None
    order, query_edges, _ = index.joined
    return PrefixBucket(
        rows=_stepped(int(query_edges[-1]) + 1),
        texts=power_of(len(query_edges) - 1, least=TEXTS_FACTOR, factor=TEXTS_FACTOR),
        longest=power_of(index.longest_query, least=SHORTEST_LONGEST, factor=2),
        keys=_stepped(len(order)),
        longest_key=power_of(index.longest_key, least=SHORTEST_LONGEST, factor=2),
        read=power_of(len(index.read), least=SMALLEST_ROWS, factor=SLOTS_FACTOR),
        kept=power_of(len(index.rows), least=SMALLEST_ROWS, factor=SLOTS_FACTOR),
    )


def _stepped(least: int) -> int:
    """Doubling sizes for few, and steps between two powers of two for many."""
    if least <= DOUBLING_ROWS:
        return power_of(least, least=SMALLEST_ROWS, factor=2)
    step = (1 << ((least - 1).bit_length() - 1)) // STEPS
    return -(-least // step) * step
