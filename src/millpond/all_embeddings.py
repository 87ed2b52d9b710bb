"""`AllEmbeddings`, the result of one pass that gives a dense, a sparse and a vector for each token.

Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .multi_vector.token_vectors import TokenVectors
from .outputs import CallResult, RaggedOutput, RaggedRows
from .sparse.token_weights import largest_weights
from .sparse.vectors import SparseVectors, Terms

__all__ = ["AllEmbeddings", "AllOutput"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AllOutput(RaggedOutput):
    """What becomes of rows that hold all that a model gives, one for each token:

    vector (of the first token: the dense one) | token id, weight
    """

    dense_dimension: int
    token_dimension: int
    vocabulary: int
    """Dimensions of a sparse vector."""
    terms: Terms | None = field(default=None, compare=False, repr=False)

    @property
    def overflow_advice(self) -> str:
        """Nothing that is done to them makes them infinite."""
        return "one of its numbers is not finite"

    def rows(self, computed: RaggedRows) -> RaggedRows:
        """They are taken apart when they are put away."""
        return computed

    def store(self, room: list[Any], texts: npt.NDArray[np.int64], rows: RaggedRows) -> None:
        """Put what these texts give into their places, as copies that hold no others."""
        for text, each in zip(texts.tolist(), rows, strict=True):
            room[text] = (
                each[0, : self.dense_dimension].copy(),
                largest_weights(each[:, -2:]),
                each[1:, : self.token_dimension].copy(),
            )

    def result(self, rows: list[tuple[FloatArray, ...] | None], **of_call: Any) -> AllEmbeddings:
        """What the texts of a call give."""
        return AllEmbeddings(rows=rows, output=self, **of_call)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AllEmbeddings(CallResult):
    """What the texts of a call give, by kind."""

    rows: Sequence[tuple[FloatArray, ...] | None] = field(repr=False)
    """Of each text its dense vector, its weights and its token vectors; None with an error."""
    output: AllOutput = field(repr=False)

    @cached_property
    def dense(self) -> FloatArray:
        """float32 `[n, dim]`; NaN for a text with an error."""
        found = np.full((len(self), self.output.dense_dimension), np.nan, dtype=np.float32)
        for row, each in zip(found, self.rows, strict=True):
            if each is not None:
                row[:] = each[0]
        return found

    @cached_property
    def sparse(self) -> SparseVectors:
        """A text with an error has an empty one."""
        empty = np.empty((0, 2), dtype=np.float32)
        rows = [empty if each is None else each[1] for each in self.rows]
        return SparseVectors.of_rows(rows, self.output.vocabulary, self.output.terms)

    @cached_property
    def tokens(self) -> TokenVectors:
        """A text with an error has none."""
        empty = np.empty((0, self.output.token_dimension), dtype=np.float32)
        rows = [empty if each is None else each[2] for each in self.rows]
        return TokenVectors.of(rows, self.output.token_dimension)
