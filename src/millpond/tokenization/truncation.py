"""Which token ids a text keeps that is longer than the model reads.

It knows ids, a limit and a side, and what stands at the ends of every text.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import TextTooLong
from .backends.backend import TokenizerBackend, ids_of

__all__ = [
    "Side",
    "SpecialTokens",
    "Truncate",
    "common_suffix",
    "require_short",
    "special_tokens_of",
]

Side = Literal["end", "start"]
Truncate = Literal["end", "start", "error"]
Ids = TypeVar("Ids", list[int], "array[int]")


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens before and after every text's own."""

    prefix: list[int]
    suffix: list[int]
    restored: bool = False
    """The suffix goes over the last ids of every text that reaches the limit, as
    sentence-transformers does with the end of a chat template. Otherwise it is kept where it is.
    """

    def fit(self, ids: Ids, limit: int, side: Side) -> Ids:
        """At most `limit` of the ids."""
        if self.restored and len(ids) >= limit:
            kept = ids[:limit] if side == "end" else ids[len(ids) - limit :]
            suffix = _like(ids, self.suffix[max(0, len(self.suffix) - limit) :])
            return kept[: limit - len(suffix)] + suffix
        return ids if len(ids) <= limit else self._cut(ids, limit, side)

    def _cut(self, ids: Ids, limit: int, side: Side) -> Ids:
        if side == "end":
            suffix = len(self.suffix)
            tail = suffix if suffix and ids[-suffix:] == _like(ids, self.suffix) else 0
            head = limit - tail
        else:
            prefix = len(self.prefix)
            head = prefix if ids[:prefix] == _like(ids, self.prefix) else 0
            tail = limit - head
        return ids[:head] + ids[len(ids) - tail :]


def _like(ids: Ids, others: list[int]) -> Ids:
    """Others in a sequence of the same kind."""
    return others if isinstance(ids, list) else array("i", others)


def special_tokens_of(source: TokenizerBackend) -> SpecialTokens:
    """The special tokens that the tokenizer puts before and after a text's own tokens."""
    if not source.add_special_tokens:
        return SpecialTokens([], [])
    for probe in ("hello", "a", "1"):
        bare = ids_of(source.tokenize([probe], False)[0])
        whole = ids_of(source.tokenize([probe], True)[0])
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return SpecialTokens(whole[:start], whole[start + len(bare) :])
    return SpecialTokens([], [])


def common_suffix(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """What both end with; nothing where one is the end of the other."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    for count, (left, right) in enumerate(pairs):
        if left != right:
            return list(one[len(one) - count :])
    return []


def require_short(
    lengths: npt.NDArray[np.int32], limit: int, incomplete: Collection[int] = ()
) -> None:
    """Raises `TextTooLong`, with its index, for the first text longer than `limit`.

    Of the texts that are `incomplete` not all tokens were counted.
    """
    too_long = lengths > limit
    if too_long.any():
        index = int(too_long.argmax())
        at_least = "more than " if index in incomplete else ""
        raise TextTooLong(
            f"it has {at_least}{lengths[index]} tokens, the model reads {limit}; "
            'shorten it, or cut it with truncate="end" or truncate="start"',
            index=index,
        )
