"""`MillpondSparseEmbeddings`: the sparse half of Qdrant's hybrid retrieval, on a shared engine.

What lives here is a translation: the options of an engine and of a call, and CSR to Qdrant's
`SparseVector`. Batching, threads and devices are the engine's business.
"""

from __future__ import annotations

from typing import Unpack

try:
    from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
except ImportError as error:
    raise ImportError(
        "MillpondSparseEmbeddings needs langchain-qdrant: pip install 'langchain-millpond[qdrant]'"
    ) from error

from langchain_millpond.sparse_model import SparseModel, SparseOptions
from millpond import Engine, SparseVectors


class MillpondSparseEmbeddings(SparseModel, SparseEmbeddings):
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

    def __init__(self, *, engine: Engine | None = None, **options: Unpack[SparseOptions]) -> None:
        super().__init__(engine=engine, **options)

    def embed_query(self, text: str) -> SparseVector:
        """Embed a query, at interactive priority and with the query route and prompt.

        Args:
            text: The text to embed.

        Returns:
            A `SparseVector`.
        """
        vector: SparseVector = self._query(text)
        return vector

    async def aembed_query(self, text: str) -> SparseVector:
        """`embed_query` for an event loop, which is free meanwhile."""
        vector: SparseVector = await self._aquery(text)
        return vector

    @staticmethod
    def _of_store(vectors: SparseVectors) -> list[SparseVector]:
        return [
            SparseVector(indices=indices.tolist(), values=values.tolist())
            for indices, values in vectors
        ]
