"""Queries filled up to a length with a token, as ColBERT's are.

Other tokens may not attend to those that fill up. Which these are is in a bit of their ids, so that
code that compares, caches or copies ids need not know of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint.input_config import QueryExpansion
from ..errors import InvalidCheckpoint

__all__ = ["QueryFill", "hidden_tokens", "known_id", "plain_ids", "query_fill"]

Ids = npt.NDArray[np.int32]

_UNATTENDED = 1 << 30


@dataclass(frozen=True, kw_only=True)
class QueryFill:
    """What queries are filled up with, and how far."""

    token: int
    """With the bit where no other token attends to it."""
    length: int
    before: bool
    """Whether it stands before the text. The reference pads a query to a fixed length on the
    tokenizer's side, and up to a least length after it."""

    @property
    def is_attended(self) -> bool:
        """Whether all tokens attend to all."""
        return not self.token & _UNATTENDED

    def filled(self, ids: Ids, lengths: Ids) -> tuple[Ids, Ids]:
        """Texts end to end and their lengths, those that are shorter filled up."""
        longer = np.maximum(lengths, np.int32(self.length))
        total = int(longer.sum(dtype=np.int64))
        found = np.full(total, self.token, dtype=np.int32)
        shifts = np.cumsum(longer) - longer - (np.cumsum(lengths) - lengths)
        if self.before:
            shifts += longer - lengths
        found[np.arange(len(ids)) + np.repeat(shifts, lengths)] = ids
        return found, longer


def query_fill(
    expansion: QueryExpansion | None, tokenizer: Any, *, longest: int | None, path: Any
) -> QueryFill | None:
    """With a tokenizer of transformers. `longest` is what the model has positions for.

    Raises `InvalidCheckpoint` where the tokenizer has no such token.
    """
    if expansion is None:
        return None
    token = _token_id(expansion.token, tokenizer)
    if token is None:
        raise InvalidCheckpoint(
            f"{path}: queries are expanded with {expansion.token or 'the mask or end token'}, "
            "which its tokenizer does not have"
        )
    bit = 0 if expansion.attended else _UNATTENDED
    length = expansion.length if longest is None else min(expansion.length, longest)
    before = expansion.is_fixed and tokenizer.padding_side == "left"
    return QueryFill(token=token | bit, length=length, before=before)


def _token_id(name: str | None, tokenizer: Any) -> int | None:
    if name is None:
        mask: int | None = tokenizer.mask_token_id
        return tokenizer.eos_token_id if mask is None else mask
    return known_id(name, tokenizer)


def known_id(name: str, tokenizer: Any) -> int | None:
    """The id of a token; None where the tokenizer does not have it."""
    token = tokenizer.convert_tokens_to_ids(name)
    is_unknown = token is None or (token == tokenizer.unk_token_id and name != tokenizer.unk_token)
    return None if is_unknown else int(token)


def plain_ids(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Ids without the bit."""
    found: npt.NDArray[Any] = ids & ~_UNATTENDED
    return found


def hidden_tokens(ids: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Which tokens no other attends to; None where there are none."""
    hidden: npt.NDArray[np.bool_] = (ids & _UNATTENDED) != 0
    return hidden if hidden.any() else None
