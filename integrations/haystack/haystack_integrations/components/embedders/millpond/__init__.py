"""Embedders in a Millpond engine."""

from .embedders import MillpondDocumentEmbedder, MillpondTextEmbedder

__all__ = ["MillpondDocumentEmbedder", "MillpondTextEmbedder"]
