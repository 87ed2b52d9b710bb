"""Token ids with their token types: one integer for both.

A model that tells the texts of a pair apart is given the type of every token. The type is in the
upper bits of the id, so that code that compares, caches or copies ids need not know of it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LARGEST_ID", "split_token_types", "typed_ids"]

_TYPE_BITS = 24


LARGEST_ID = (1 << _TYPE_BITS) - 1
"""No vocabulary has more."""


def typed_ids(ids: list[int], token_type: int) -> list[int]:
    """Ids that say they are of this type; those of type 0 are ids as they are."""
    return [token | token_type << _TYPE_BITS for token in ids] if token_type else ids


def split_token_types(ids: Any) -> tuple[Any, Any]:
    """Ids and types of an integer array or tensor, in two of its shape."""
    return ids & LARGEST_ID, ids >> _TYPE_BITS
