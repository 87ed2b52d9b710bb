"""`SparseEmbeddings`, what a call for sparse vectors gives, and `SparseOutput`, how they are cut.

Of each text the model gives rows of two numbers, a dimension and its weight: a dimension is whole
and below 2²⁴, so float32 holds it as it is. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..outputs import CallResult, RaggedOutput, RaggedRows
from .vectors import SparseVectors, Terms

__all__ = ["SparseEmbeddings", "SparseOutput"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SparseOutput(RaggedOutput):
    """What the caller wants of sparse vectors: fewer dimensions."""

    dimension: int
    """Dimensions the model has."""
    max_active_dims: int | None = None
    """Keep this number of the largest magnitude, ties by dimension, as sentence-transformers'
    `select_max_active_dims`."""
    min_weight: float = 0.0
    """Keep what is of a larger magnitude."""
    terms: Terms | None = field(default=None, compare=False)

    @property
    def overflow_advice(self) -> str:
        """Nothing that is done to them makes them infinite."""
        return "one of its weights is not finite"

    def rows(self, computed: RaggedRows) -> RaggedRows:
        """The model's weights as the caller wants them."""
        if self.max_active_dims is None and self.min_weight <= 0.0:
            return computed
        return RaggedRows.of([self._kept(rows) for rows in computed], computed.width)

    def _kept(self, rows: FloatArray) -> FloatArray:
        sizes = np.abs(rows[:, 1])
        if self.min_weight > 0.0:
            heavy = ~(sizes <= np.float32(self.min_weight))  # what is NaN stays, to be told of
            rows, sizes = rows[heavy], sizes[heavy]
        most = self.max_active_dims
        if most is None or len(rows) <= most:
            return rows
        return rows[np.sort(np.argsort(-sizes, kind="stable")[:most])]

    def result(self, rows: list[FloatArray | None], **of_call: Any) -> SparseEmbeddings:
        """The sparse vectors of a call."""
        return SparseEmbeddings(rows=rows, output=self, **of_call)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SparseEmbeddings(CallResult):
    """The sparse vectors of a call's texts, those of *i* at *i*."""

    rows: Sequence[FloatArray | None] = field(repr=False)
    """Of each text float32 `[active, 2]`, dimension and weight; None with an error."""
    output: SparseOutput = field(repr=False)

    @cached_property
    def vectors(self) -> SparseVectors:
        """Those of all texts; one with an error is empty."""
        empty = np.empty((0, 2), dtype=np.float32)
        rows = [empty if each is None else each for each in self.rows]
        return SparseVectors.of_rows(rows, self.output.dimension, self.output.terms)

    def _facts(self) -> Mapping[str, object]:
        active = sum(len(each) for each in self.rows if each is not None)
        return {"dimension": self.output.dimension, "active": active}
