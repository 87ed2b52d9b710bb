"""A weight for each token of a text, as bge-m3 gives it: of each id the largest counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..outputs import RaggedRows
from .embeddings import SparseOutput

__all__ = ["TokenWeightsOutput", "largest_weights"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TokenWeightsOutput(SparseOutput):
    """What the caller wants of sparse vectors that a model gives as weights of tokens."""

    def rows(self, computed: RaggedRows) -> RaggedRows:
        """The vectors as the caller wants them."""
        return super().rows(RaggedRows.of([largest_weights(rows) for rows in computed], 2))


def largest_weights(rows: FloatArray) -> FloatArray:
    """Of tokens' ids and weights `[tokens, 2]` each id once, ascending, with its largest weight.

    Those of weight 0 are left out (FlagEmbedding's `BGEM3FlagModel`). What is NaN stays.
    """
    rows = rows[~(rows[:, 1] <= 0)]
    if not len(rows):
        return rows
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    firsts = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))
    return np.stack([rows[firsts, 0], np.maximum.reduceat(rows[:, 1], firsts)], axis=1)
