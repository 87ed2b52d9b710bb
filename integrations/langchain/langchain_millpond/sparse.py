"""`MillpondSparseEmbeddings`: the sparse half of Qdrant's hybrid retrieval, on a shared engine.

What lives here is a translation: the options of an engine and of a call, and CSR to Qdrant's
`SparseVector`. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Unpack

try:
    from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
except ImportError as error:
    raise ImportError(
        "MillpondSparseEmbeddings needs langchain-qdrant: pip install 'langchain-millpond[qdrant]'"
    ) from error

from langchain_millpond.embeddings import _strings
from langchain_millpond.shared_engine import EngineOptions, SharedEngine
from millpond import SparseVector as MillpondSparseVector

ROWS_PER_TURN = 64  # vectors made into lists before the event loop gets its turn


class SparseOptions(EngineOptions, total=False):
    """What `MillpondSparseEmbeddings` takes, for type checkers; its fields say what it means."""

    query_prompt: str | None
    document_prompt: str | None
    query_max_active_dims: int | None
    max_active_dims: int | None
    min_weight: float
    truncate: Literal["end", "start", "error"] | None


class MillpondSparseEmbeddings(SharedEngine, SparseEmbeddings):
    """Sparse embeddings, such as SPLADE's, from a Millpond engine inside this process.

    Objects with the same model and engine options share one engine. Queries take the query route
    and prompt of the checkpoint, and do not wait behind ingestion. An object cannot be changed; it
    pickles to its options.

    Setup:
        ```bash
        pip install -U "langchain-millpond[qdrant]"
        ```

    Key init args:
        model: str
            A sparse model of sentence-transformers (`SparseEncoder`), or a masked language model:
            a folder, or a name on the Hugging Face hub.
        max_active_dims, query_max_active_dims: int | None
            Keep this many terms of a document, and of a query; None keeps what the checkpoint says.
        min_weight: float
            Keep terms with weights above it.

    See the fields for the rest.

    Instantiate:
        ```python
        from langchain_millpond import MillpondEmbeddings, MillpondSparseEmbeddings
        from langchain_qdrant import QdrantVectorStore, RetrievalMode

        store = QdrantVectorStore.from_texts(
            texts,
            embedding=MillpondEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2"),
            sparse_embedding=MillpondSparseEmbeddings(model="naver/splade-v3"),
            retrieval_mode=RetrievalMode.HYBRID,
            path="index",
            collection_name="documents",
        )
        ```

    Raises:
        MillpondError: One of its kinds; `UnsupportedCall` for a model that is not sparse.
    """

    query_prompt: str | None = None
    """Text in front of every query; None for the checkpoint's own."""
    document_prompt: str | None = None
    """Text in front of every document; None for the checkpoint's own."""
    max_active_dims: int | None = None
    """Terms of a document that are kept, the heaviest; None for what the checkpoint says."""
    query_max_active_dims: int | None = None
    """The same of a query."""
    min_weight: float = 0.0
    """Weights above it are kept."""
    truncate: Literal["end", "start", "error"] | None = None
    """Where to cut texts that are too long, or to refuse them; None as the checkpoint says."""

    def __init__(self, **options: Unpack[SparseOptions]) -> None:
        super().__init__(**options)

    def _require_valid(self) -> None:
        for task in ("query", "document"):
            self._serving.embed_sparse([], **self._call(task))

    def __hash__(self) -> int:  # pydantic's own does not take `engine_options`
        return hash((self.model, self.dtype, self.query_prompt, self.document_prompt))

    def _call(self, task: str) -> dict[str, Any]:
        query = task == "query"
        return {
            "task": task,
            "prompt": self.query_prompt if query else self.document_prompt,
            "priority": "interactive" if query else "bulk",
            "max_active_dims": self.query_max_active_dims if query else self.max_active_dims,
            "min_weight": self.min_weight,
            "truncate": self.truncate,
        }

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed documents, at bulk priority and with the document route and prompt.

        Args:
            texts: The texts to embed.

        Returns:
            One `SparseVector` for each text, in order.
        """
        vectors = self._serving.embed_sparse(_strings(texts), **self._call("document"))
        return list(map(_of_qdrant, vectors))

    def embed_query(self, text: str) -> SparseVector:
        """Embed a query, at interactive priority and with the query route and prompt.

        Args:
            text: The text to embed.

        Returns:
            A `SparseVector`.
        """
        return _of_qdrant(self._serving.embed_sparse(_strings([text]), **self._call("query"))[0])

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """`embed_documents` for an event loop, which is free meanwhile."""
        vectors = await self._serving.aembed_sparse(_strings(texts), **self._call("document"))
        rows: list[SparseVector] = []
        for start in range(0, len(vectors), ROWS_PER_TURN):
            rows += map(_of_qdrant, vectors[start : start + ROWS_PER_TURN])
            await asyncio.sleep(0)
        return rows

    async def aembed_query(self, text: str) -> SparseVector:
        """`embed_query` for an event loop, which is free meanwhile."""
        found = await self._serving.aembed_sparse(_strings([text]), **self._call("query"))
        return _of_qdrant(found[0])


def _of_qdrant(vector: MillpondSparseVector) -> SparseVector:
    return SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
