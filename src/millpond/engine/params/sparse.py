"""`SparseParams`: the options of a call for sparse vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...checkpoint.routes import Route
from ...checkpoint.spec import ModelSpec
from ...errors import InvalidOption
from ...sparse.embeddings import SparseOutput
from ...sparse.token_weights import TokenWeightsOutput
from ...sparse.vectors import Terms
from .embed import EmbedParams, require_count, unsupported

__all__ = ["SparseParams"]


@dataclass(frozen=True, kw_only=True)
class SparseParams(EmbedParams):
    """The options of one call."""

    max_active_dims: int | None = None
    min_weight: float = 0.0
    terms: Terms | None = field(default=None, repr=False)
    """Not the caller's: the tokens of a vocabulary."""

    def validate(self, spec: ModelSpec) -> None:
        """Raise `InvalidOption` or a subclass for an option that cannot be meant."""
        super().validate(spec)
        require_count("max_active_dims", self.max_active_dims)
        least: Any = self.min_weight
        is_number = isinstance(least, int | float | np.integer | np.floating)
        if isinstance(least, bool) or not (is_number and 0 <= least < np.inf):
            raise InvalidOption(f"min_weight={least!r}: it must be a number, 0 or more")

    def route(self, spec: ModelSpec) -> Route:
        """The route that the texts take. Raises `UnknownTask`."""
        return spec.sparse_route_for(self.task)

    def output(self, spec: ModelSpec, dimension: int) -> SparseOutput:
        """What becomes of the model's vectors of `dimension` dimensions."""
        assert spec.sparse is not None
        most = self.max_active_dims
        kind = TokenWeightsOutput if spec.sparse.by_token else SparseOutput
        return kind(
            dimension=dimension,
            max_active_dims=spec.sparse.max_active_dims if most is None else int(most),
            min_weight=float(self.min_weight),
            terms=self.terms if spec.sparse.has_terms else None,
        )

    @staticmethod
    def require(spec: ModelSpec, call: str) -> None:
        """Raise `UnsupportedCall` for a model that gives no sparse vectors."""
        if spec.sparse is None:
            raise unsupported(spec, call, "a sparse model, such as a SPLADE")
