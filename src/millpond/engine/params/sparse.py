"""`SparseParams`: the options of a call for sparse vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...checkpoint.routes import Route
from ...checkpoint.spec import ModelSpec
from ...errors import InvalidOption, UnsupportedCall
from ...sparse.embeddings import SparseOutput
from ...sparse.token_weights import TokenWeightsOutput
from ...sparse.vectors import Terms
from .embed import EmbedParams

__all__ = ["SparseParams", "require_sparse_vectors"]


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
        most, least = self.max_active_dims, self.min_weight
        if most is not None and not (_is_number(most, int, np.integer) and most >= 1):
            raise InvalidOption(f"max_active_dims={most!r}: it must be a whole number above 0")
        if not _is_number(least, int, float, np.integer, np.floating) or not 0 <= least < np.inf:
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

    def require(self, spec: ModelSpec, call: str) -> None:
        """Raise `UnsupportedCall` for a model that gives no sparse vectors."""
        require_sparse_vectors(spec, call)


def _is_number(value: object, *kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def require_sparse_vectors(spec: ModelSpec, call: str) -> None:
    """Raise `UnsupportedCall` for a model that gives no sparse vectors."""
    if spec.sparse is None:
        answers = {
            "score": "score or rank with pairs",
            "classify": "classify",
            "multi_vector": "embed_tokens, or rank",
        }
        raise UnsupportedCall(
            f"{spec.name} gives no sparse vectors, and {call} needs a sparse model, such as a "
            f"SPLADE; call {answers.get(spec.kind, 'embed')}"
        )
