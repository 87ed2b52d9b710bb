"""`RouteInfo`: how one way through a model runs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = ["ExecutionKind", "RouteInfo"]

ExecutionKind = Literal["packed", "padded", "equal_length", "static"]


@dataclass(frozen=True, kw_only=True)
class RouteInfo:
    """One way through the model; most models have one, a Router has one per task."""

    name: str
    execution: ExecutionKind
    """`packed` (no padding), `padded`, `equal_length` (padding would leak into the texts) or
    `static` (no transformer)."""
    reason: str
    dimension: int
    """Dimensions of a vector; labels of a model that scores or classifies."""
    max_length: int | None
    """Longest text in tokens, special tokens included; None for no limit."""
    batch_invariant: bool = False
    """Whether a text's vector is the same to the bit whatever it is batched with, on any number
    of threads and after any cached prefix, as a check at load found on this machine."""
    excludes_prompt: bool = False
    """Whether pooling leaves the tokens of a prompt out, as the checkpoint says."""
    prefixes: str = ""
    """Whether prefixes can be cached, or why they cannot."""
    is_sparse: bool = False
    """Whether a text has a few of its dimensions, and any number of rows for them."""

    @cached_property
    def row_width(self) -> int:
        """Numbers in a row as the model gives it: a sparse one is a dimension and its weight."""
        return 2 if self.is_sparse else self.dimension
