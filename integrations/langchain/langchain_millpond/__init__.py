"""Embeddings and rerankers from a Millpond engine, for LangChain."""

from langchain_millpond.embeddings import MillpondEmbeddings
from langchain_millpond.rerank import MillpondCrossEncoder, MillpondRerank

__all__ = ["MillpondCrossEncoder", "MillpondEmbeddings", "MillpondRerank"]
