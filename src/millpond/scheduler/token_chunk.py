"""`TokenChunk`: tokenised texts of one request, longest first."""

from __future__ import annotations

import itertools
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
            digests=_digests(sorted_ids, offsets.tolist()),
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
        bounds = list(itertools.accumulate(lengths.tolist(), initial=0))
        digests = _digests(ids, bounds)
        offsets = np.zeros((len(rows), 2), dtype=np.int64)
        offsets[:, 1] = lengths
        chunks = []
        for place, (start, stop) in enumerate(itertools.pairwise(bounds)):
            own, digest = offsets[place], digests[place : place + 1]
            chunks.append(cls(rows[place], own[1:], own, ids[start:stop], tokenize_s, digest))
        return chunks

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, start: int, stop: int) -> int:
        """Tokens of the texts `start:stop`."""
        if stop - start == len(self.rows):  # a query is all of its chunk
            return len(self.ids)
        return int(self.offsets[stop] - self.offsets[start])

    def ids_of(self, place: int) -> npt.NDArray[np.int32]:
        """The token ids of one text."""
        return self.ids[self.offsets[place] : self.offsets[place + 1]]


def ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`start, start + 1, …` for each, end to end."""
    before = np.cumsum(lengths) - lengths
    found: npt.NDArray[np.int64] = np.repeat(starts - before, lengths)
    return found + np.arange(int(lengths.sum()))


def _digests(ids: npt.NDArray[np.int32], offsets: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Python's own hashes of the ids of each text, whose key is another in every process."""
    size, data = ids.itemsize, ids.tobytes()
    hashes = [hash(data[size * start : size * end]) for start, end in itertools.pairwise(offsets)]
    return np.array(hashes, dtype=np.int64).view(np.uint64)
