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
from millpond import SparseVector


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

    def __init__(self, **options: Unpack[SparseOptions]) -> None:
        super().__init__(**options)

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Embed documents, at bulk priority and with the document route and prompt.

        Args:
            texts: The texts to embed.

        Returns:
            For each text, in order, the weights of its terms.
        """
        return self._documents(texts).to_dicts()

    def embed_query(self, query: str) -> dict[int, float]:
        """Embed a query, at interactive priority and with the query route and prompt.

        Args:
            query: The text to embed.

        Returns:
            The weights of its terms.
        """
        return _of_milvus(self._query(query))

    async def aembed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """`embed_documents` for an event loop, which is free meanwhile."""
        return await self._adocuments(texts, _of_milvus)

    async def aembed_query(self, query: str) -> dict[int, float]:
        """`embed_query` for an event loop, which is free meanwhile."""
        return _of_milvus(await self._aquery(query))


def _of_milvus(vector: SparseVector) -> dict[int, float]:
    return dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))
