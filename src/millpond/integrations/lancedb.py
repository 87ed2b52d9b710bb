"""LanceDB: `MillpondEmbeddings`, in LanceDB's registry as `millpond`.

    import millpond.integrations.lancedb
    from lancedb.embeddings import get_registry

    function = get_registry().get("millpond").create(name="BAAI/bge-base-en-v1.5")

    class Note(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()

LanceDB saves its name and arguments with a table. A process that has imported this module embeds
what it adds and searches with the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from lancedb.embeddings import TextEmbeddingFunction, register
from pydantic import Field, PrivateAttr

from ..config import EngineOptions
from ..engine.engine import Engine

__all__ = ["MillpondEmbeddings"]


@register("millpond")
class MillpondEmbeddings(TextEmbeddingFunction):
    """Embeds documents with the model's prompt for documents, and queries with that for queries.

    A row without a text gets no vector. The model is loaded at the first call.
    """

    name: str
    """A folder, or a name on the Hugging Face hub."""
    dimensions: int | None = None
    normalize: bool | None = None
    truncate: str | None = None
    """Those of `Engine.embed`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The engine's, the fields of `EngineConfig`."""
    _engine: Engine | None = PrivateAttr(default=None)  # set once, at the first call

    @property
    def engine(self) -> Engine:
        """The engine, shared with everything else that has the same configuration."""
        if self._engine is None:
            self._engine = Engine.shared(self.name, **cast(EngineOptions, self.options))
        return self._engine

    def ndims(self) -> int:
        """The length of a vector."""
        return int(self._embed([], "document").shape[1])

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[Any]:
        """The vector of a query, in a list."""
        return list(self._embed([query], "query"))

    def generate_embeddings(
        self, texts: Sequence[str | None] | Any, *args: Any, **kwargs: Any
    ) -> list[Any]:
        """The vectors of texts, None in the place of None."""
        given = [text for text in texts if text is not None]
        vectors = iter(self._embed(given, "document"))
        return [None if text is None else next(vectors) for text in texts]

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """`compute_query_embeddings` once: what fails here fails again."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """`compute_source_embeddings` once."""
        return cast(list[Any], self.compute_source_embeddings(*args, **kwargs))

    def _embed(self, texts: list[str], task: str) -> Any:
        return np.asarray(
            self.engine.embed(
                texts,
                task=task,
                dimensions=self.dimensions,
                normalize=self.normalize,
                truncate=cast(Any, self.truncate),
            )
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MillpondEmbeddings) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((self.name, self.dimensions, self.normalize, self.truncate))
