"""A ranker in a Millpond engine."""

from .ranker import MillpondRanker

__all__ = ["MillpondRanker"]
