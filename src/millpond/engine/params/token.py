"""`TokenParams`: the options of a call for token vectors."""

from __future__ import annotations

from dataclasses import dataclass

from ...checkpoint.routes import Route
from ...checkpoint.spec import ModelSpec
from ...errors import InvalidOption
from ...multi_vector.token_embeddings import TokenVectorOutput
from ...multi_vector.token_pooling import TokenPooling, require_clustering
from .embed import EmbedParams, unsupported

__all__ = ["TokenParams"]


@dataclass(frozen=True, kw_only=True)
class TokenParams(EmbedParams):
    """The options of one call."""

    pool_factor: float = 1

    def validate(self, spec: ModelSpec) -> None:
        """Raise `InvalidOption` or a subclass for an option that cannot be meant."""
        super().validate(spec)
        factor = self.pool_factor
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor >= 1:
            raise InvalidOption(f"pool_factor={factor!r}: it must be a number of at least 1")
        if factor > 1 and self.task == "query":
            raise InvalidOption(
                f"pool_factor={factor!r}: queries keep all of their vectors; pool documents"
            )
        if factor > 1:
            require_clustering()

    def route(self, spec: ModelSpec) -> Route:
        """The way through the model to token vectors."""
        return spec.token_route_for(self.task)

    def output(self, spec: ModelSpec, dimension: int) -> TokenVectorOutput:
        """What becomes of the model's vectors of `dimension` numbers."""
        saved = [
            TokenPooling(**module.options)
            for module in self.route(spec).modules
            if module.kind == "HierarchicalTokenPooling"
        ]
        return TokenVectorOutput(
            dimension=dimension,
            dimensions=self.dimensions,
            normalize=self.normalize,
            saved_pooling=saved[0] if saved else None,
            pooling=TokenPooling(factor=self.pool_factor) if self.pool_factor > 1 else None,
        )

    @staticmethod
    def require(spec: ModelSpec, call: str) -> None:
        """Raise `UnsupportedCall` for a model that gives no token vectors."""
        if spec.multi_vector is None:
            raise unsupported(spec, call, "a multi-vector model, such as a ColBERT")
