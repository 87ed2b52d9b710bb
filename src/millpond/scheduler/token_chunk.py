"""`TokenChunk`: tokenised texts of one request, longest first."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["TokenChunk", "ranges"]

IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, eq=False)
class TokenChunk:
    """Tokenised texts of one request, longest first.

    `rows[i]` is the text's index in the request and `ids[offsets[i]:offsets[i + 1]]` its tokens.
    """

    rows: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    tokenize_s: float
    digests: npt.NDArray[np.uint64]
    """Equal for equal texts, and hardly ever for others."""

    @classmethod
    def build(
        cls, rows: IntArray, ids: npt.NDArray[np.int32], lengths: IntArray, tokenize_s: float = 0.0
    ) -> TokenChunk:
        """Sort texts given in any order, their ids end to end, longest first."""
        if len(rows) == 1:
            return cls.of_single_texts(
                [np.asarray(rows, dtype=np.int64)], ids, lengths, tokenize_s
            )[0]
        order = np.argsort(-lengths, kind="stable")
        sorted_lengths = lengths[order].astype(np.int64)
        offsets = np.concatenate(([0], np.cumsum(sorted_lengths)))
        starts: npt.NDArray[np.int64] = np.cumsum(lengths) - lengths
        sorted_ids = ids[ranges(starts[order], sorted_lengths)]
        return cls(
            rows=np.asarray(rows, dtype=np.int64)[order],
            lengths=sorted_lengths,
            offsets=offsets,
            ids=sorted_ids,
            tokenize_s=tokenize_s,
            digests=_digests(sorted_ids, sorted_lengths, offsets),
        )

    @classmethod
    def of_single_texts(
        cls,
        rows: Sequence[npt.NDArray[np.int64]],
        ids: npt.NDArray[np.int32],
        lengths: IntArray,
        tokenize_s: float = 0.0,
    ) -> list[TokenChunk]:
        """A chunk for each text, their ids end to end; `rows` has one index for each."""
        counts = lengths.astype(np.int64)
        ends = np.cumsum(counts)
        digests = _digests(ids, counts, np.append(0, ends))
        offsets = np.stack((np.zeros_like(counts), counts), axis=1)
        chunks, start = [], 0
        for place, end in enumerate(ends.tolist()):
            own = slice(place, place + 1)
            chunk = cls(
                rows[place], counts[own], offsets[place], ids[start:end], tokenize_s, digests[own]
            )
            chunks.append(chunk)
            start = end
        return chunks

    def __len__(self) -> int:
        return len(self.rows)

    def ids_of(self, place: int) -> npt.NDArray[np.int32]:
        """The token ids of one text."""
        return self.ids[self.offsets[place] : self.offsets[place + 1]]


def ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`start, start + 1, …` for each, end to end."""
    before = np.cumsum(lengths) - lengths
    found: npt.NDArray[np.int64] = np.repeat(starts - before, lengths)
    return found + np.arange(int(lengths.sum()))


def _digests(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """A sum of ids, each times a number that depends on its position in its text."""
    factors = _factors(1 << int(lengths.max(initial=0)).bit_length())
    positions = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    terms = (ids.astype(np.uint64) + np.uint64(1)) * factors[positions]
    sums = np.concatenate((np.zeros(1, dtype=np.uint64), np.cumsum(terms)))
    digests: npt.NDArray[np.uint64] = sums[offsets[1:]] - sums[offsets[:-1]]
    return digests


@functools.cache
def _factors(count: int) -> npt.NDArray[np.uint64]:
    """Odd and well mixed: the steps of Steele, Lea and Flood's SplitMix64 (2014)."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
