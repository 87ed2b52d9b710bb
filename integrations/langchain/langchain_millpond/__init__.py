"""Embeddings, sparse ones too, and rerankers from a Millpond engine, for LangChain."""

from typing import TYPE_CHECKING, Any

from langchain_millpond.embeddings import MillpondEmbeddings
from langchain_millpond.rerank import MillpondCrossEncoder, MillpondRerank

if TYPE_CHECKING:
    from langchain_millpond.sparse import MillpondSparseEmbeddings

__all__ = [
    "MillpondCrossEncoder",
    "MillpondEmbeddings",
    "MillpondRerank",
    "MillpondSparseEmbeddings",
]


def __getattr__(name: str) -> Any:
    if name == "MillpondSparseEmbeddings":  # its base class is langchain-qdrant's
        from langchain_millpond.sparse import MillpondSparseEmbeddings

        return MillpondSparseEmbeddings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
