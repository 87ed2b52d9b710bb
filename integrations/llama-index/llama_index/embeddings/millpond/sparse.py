"""`MillpondSparseEmbedding`: LlamaIndex's sparse embedding interface on a shared Millpond engine.

Its `sparse_doc_fn` and `sparse_query_fn` are the pair of functions that LlamaIndex' Qdrant store
takes for hybrid retrieval. What lives here is a translation, and CSR to dictionaries and lists.
"""

from __future__ import annotations

import os
from typing import Any, Unpack

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.embeddings.millpond.shared_engine import (
    SharedEngine,
    SharedOptions,
    require_string,
    require_strings,
)

from millpond import Engine, SparseVectors

BatchSparseEncoding = tuple[list[list[int]], list[list[float]]]
"""Indices and values of several texts, as LlamaIndex' Qdrant store takes them."""


class SparseOptions(SharedOptions, total=False):
    """What `MillpondSparseEmbedding` takes beside a model or an engine, for type checkers."""

    max_active_dims: int | None
    query_max_active_dims: int | None
    min_weight: float


class MillpondSparseEmbedding(SharedEngine, BaseSparseEmbedding):
    """
    Sparse embeddings, such as SPLADE's, from a Millpond engine inside this process.

    Objects with the same engine options share one engine. Queries take the query route and prompt
    of the checkpoint, and do not wait behind ingestion. A pickle holds the options, and finds or
    makes the shared engine where it is loaded.

    Raises:
        MillpondError: One of its kinds; `UnsupportedCall` for a model that is not sparse.

    Examples:
        `pip install llama-index-embeddings-millpond llama-index-vector-stores-qdrant`

        ```python
        from llama_index.embeddings.millpond import MillpondSparseEmbedding
        from llama_index.vector_stores.qdrant import QdrantVectorStore

        sparse = MillpondSparseEmbedding(model_name="naver/splade-v3")
        store = QdrantVectorStore(
            "documents",
            client=client,
            enable_hybrid=True,
            sparse_doc_fn=sparse.sparse_doc_fn,
            sparse_query_fn=sparse.sparse_query_fn,
        )
        ```

    """

    max_active_dims: int | None = None
    """Terms of a text that are kept, the heaviest; None for what the checkpoint says."""
    query_max_active_dims: int | None = None
    """The same of a query."""
    min_weight: float = 0.0
    """Weights above it are kept."""

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        engine: Engine | None = None,
        **options: Unpack[SparseOptions],
    ) -> None:
        super().__init__(model_name, engine=engine, **options)

    def _require_valid(self) -> None:
        for task in ("query", "document"):
            self.engine.embed_sparse([], **self._call(task))

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised form."""
        return "MillpondSparseEmbedding"

    def _call(self, task: str) -> dict[str, Any]:
        query = task == "query"
        return {
            "task": task,
            "prompt": self.query_instruction if query else self.text_instruction,
            "priority": "interactive" if query else "bulk",
            "max_active_dims": self.query_max_active_dims if query else self.max_active_dims,
            "min_weight": self.min_weight,
            "truncate": self.truncate,
        }

    def sparse_doc_fn(self, texts: list[str]) -> BatchSparseEncoding:
        """Indices and values of documents, for a Qdrant store."""
        return _lists(self.engine.embed_sparse(require_strings(texts), **self._call("document")))

    def sparse_query_fn(self, texts: list[str]) -> BatchSparseEncoding:
        """Indices and values of queries, for a Qdrant store."""
        return _lists(self.engine.embed_sparse(require_strings(texts), **self._call("query")))

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        found = self.engine.embed_sparse(require_string(query), **self._call("query"))
        return dict(found.to_dict())

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        found = await self.engine.aembed_sparse(require_string(query), **self._call("query"))
        return dict(found.to_dict())

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        found = self.engine.embed_sparse(require_strings(texts), **self._call("document"))
        return list(found.to_dicts())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        found = await self.engine.aembed_sparse(require_strings(texts), **self._call("document"))
        return list(found.to_dicts())


def _lists(vectors: SparseVectors) -> BatchSparseEncoding:
    indices = [vector.indices.tolist() for vector in vectors]
    return indices, [vector.values.tolist() for vector in vectors]
