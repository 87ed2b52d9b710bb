"""`TokenEmbeddings`, the result of a call for token vectors, and `TokenVectorOutput`, how they
become it.

Pure numpy, but for the clusters of a pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..outputs import CallResult, RaggedOutput, RaggedRows, require_dimensions, unit_length
from .token_pooling import TokenPooling
from .token_vectors import TokenVectors

__all__ = ["TokenEmbeddings", "TokenVectorOutput"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TokenVectorOutput(RaggedOutput):
    """What the caller wants of token vectors: fewer dimensions, unit length, fewer vectors."""

    dimension: int
    """Dimensions the model gives."""
    dimensions: int | None = None
    """Keep only the first N; the rest is dropped and the norm restored."""
    normalize: bool | None = None
    """Scale every vector to unit length; None leaves the model's own length."""
    saved_pooling: TokenPooling | None = None
    """What the checkpoint says comes first."""
    pooling: TokenPooling | None = None

    def __post_init__(self) -> None:
        require_dimensions(self.dimensions, self.dimension)

    @property
    def width(self) -> int:
        """Dimensions kept."""
        return self.dimension if self.dimensions is None else int(self.dimensions)

    @property
    def overflow_advice(self) -> str:
        """Nothing that is done to them makes them infinite."""
        return "one of its vectors is not finite"

    def rows(self, computed: RaggedRows) -> RaggedRows:
        """The model's vectors as the caller wants them."""
        if self.saved_pooling is not None:
            computed = self.saved_pooling(computed)
        cut = self.width < self.dimension
        if cut:
            computed = RaggedRows(computed.values[:, : self.width], computed.offsets)
        if self.normalize or (cut and self.normalize is None):
            computed = RaggedRows(unit_length(computed.values), computed.offsets)
        return computed if self.pooling is None else self.pooling(computed)

    def result(self, rows: list[FloatArray | None], **of_call: Any) -> TokenEmbeddings:
        """The token vectors of a call."""
        return TokenEmbeddings(rows=rows, dimension=self.width, **of_call)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenEmbeddings(CallResult):
    """The token vectors of a call's texts, those of *i* at *i*."""

    dimension: int
    """Numbers in a vector."""
    rows: Sequence[FloatArray | None] = field(repr=False)
    """Of each text float32 `[tokens, dimension]`; None with an error."""

    @cached_property
    def vectors(self) -> TokenVectors:
        """Those of all texts; one with an error has none."""
        empty = np.empty((0, self.dimension), dtype=np.float32)
        rows = [empty if each is None else each for each in self.rows]
        return TokenVectors.of(rows, self.dimension)

    def _facts(self) -> Mapping[str, object]:
        return {"dimension": self.dimension}
