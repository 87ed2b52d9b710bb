"""Embeddings, sparse ones too, and rerankers from a Millpond engine, for LangChain."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_millpond.embeddings import MillpondEmbeddings
from langchain_millpond.rerank import MillpondCrossEncoder, MillpondRerank

if TYPE_CHECKING:
    from langchain_millpond.milvus import MillpondMilvusSparseEmbeddings
    from langchain_millpond.sparse import MillpondSparseEmbeddings

__all__ = [
    "MillpondCrossEncoder",
    "MillpondEmbeddings",
    "MillpondMilvusSparseEmbeddings",
    "MillpondRerank",
    "MillpondSparseEmbeddings",
]

# Their base classes are those of a store's package, which others need not have.
_MODULES = {"MillpondMilvusSparseEmbeddings": "milvus", "MillpondSparseEmbeddings": "sparse"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"langchain_millpond.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
