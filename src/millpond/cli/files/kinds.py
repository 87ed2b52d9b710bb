"""`OutputKind`: what `millpond embed` writes of a text, and the engine's call that gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ...engine.engine import Engine

__all__ = ["OUTPUT_KINDS", "OutputKind", "OutputKindName"]

OutputKindName = Literal["dense", "sparse", "tokens"]


@dataclass(frozen=True, kw_only=True)
class OutputKind:
    """A kind of vectors in files."""

    of_model: str
    """As `EngineInfo.kinds` has it."""
    call: str
    """The engine's method; with `_iter` after it, that for a corpus."""
    options: tuple[str, ...]
    """Of the call, beside those of every kind."""
    is_matrix: bool = False
    """Whether all rows have one length."""

    def embed(self, engine: Engine, texts: list[str], **options: Any) -> Any:
        """The vectors of texts."""
        return getattr(engine, self.call)(texts, **options)

    def iterate(self, engine: Engine, texts: Iterator[str], **options: Any) -> Iterator[Any]:
        """The vectors of a corpus, chunk by chunk."""
        vectors: Iterator[Any] = getattr(engine, f"{self.call}_iter")(texts, **options)
        return vectors


OUTPUT_KINDS: Mapping[str, OutputKind] = {
    "dense": OutputKind(
        of_model="embed",
        call="embed",
        options=("dimensions", "normalize", "output_dtype"),
        is_matrix=True,
    ),
    "sparse": OutputKind(
        of_model="sparse", call="embed_sparse", options=("max_active_dims", "min_weight")
    ),
    "tokens": OutputKind(
        of_model="multi_vector",
        call="embed_tokens",
        options=("dimensions", "normalize", "pool_factor"),
    ),
}
