"""`MillpondMilvusSparseEmbeddings`: sparse vectors for Milvus, on a shared engine.

What lives here is a translation: the options of an engine and of a call, and CSR to the
dictionaries of term and weight that Milvus takes.
"""

from __future__ import annotations

from typing import Unpack

try:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
except ImportError as error:
    raise ImportError(
        "MillpondMilvusSparseEmbeddings needs langchain-milvus: "
        "pip install 'langchain-millpond[milvus]'"
    ) from error

from langchain_millpond.sparse_model import SparseModel, SparseOptions
from millpond import Engine, SparseVectors


class MillpondMilvusSparseEmbeddings(SparseModel, BaseSparseEmbedding):
    """Sparse embeddings, such as SPLADE's, from a Millpond engine inside this process.

    Objects with the same model and engine options share one engine. Queries take the query route
    and prompt of the checkpoint, and do not wait behind ingestion. An object cannot be changed; it
    pickles to its options.

    Setup:
        ```bash
        pip install -U "langchain-millpond[milvus]"
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
        from langchain_millpond import MillpondEmbeddings, MillpondMilvusSparseEmbeddings
        from langchain_milvus import Milvus

        store = Milvus.from_texts(
            texts,
            embedding=[
                MillpondEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2"),
                MillpondMilvusSparseEmbeddings(model="naver/splade-v3"),
            ],
            vector_field=["dense", "sparse"],
            connection_args={"uri": "documents.db"},
        )
        ```

    Raises:
        MillpondError: One of its kinds; `UnsupportedCall` for a model that is not sparse.
    """

    def __init__(self, *, engine: Engine | None = None, **options: Unpack[SparseOptions]) -> None:
        super().__init__(engine=engine, **options)

    def embed_query(self, query: str) -> dict[int, float]:
        """Embed a query, at interactive priority and with the query route and prompt.

        Args:
            query: The text to embed.

        Returns:
            The weights of its terms.
        """
        weights: dict[int, float] = self._query(query)
        return weights

    async def aembed_query(self, query: str) -> dict[int, float]:
        """`embed_query` for an event loop, which is free meanwhile."""
        weights: dict[int, float] = await self._aquery(query)
        return weights

    @staticmethod
    def _of_store(vectors: SparseVectors) -> list[dict[int, float]]:
        return vectors.to_dicts()
