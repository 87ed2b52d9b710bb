"""Embeddings from a Millpond engine, for LlamaIndex."""

from llama_index.embeddings.millpond.base import MillpondEmbedding
from llama_index.embeddings.millpond.sparse import MillpondSparseEmbedding

__all__ = ["MillpondEmbedding", "MillpondSparseEmbedding"]
