"""The token ids that a long text keeps, from a part of it.

Tokenising takes up to 500 bytes a character, and of a text that is far too long for the model only
the first or the last few tokens are kept. It knows characters, and a function that gives their
token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["LONG_TEXT", "enough_ids"]

LONG_TEXT = 64 * 2**10  # characters; a text up to this length is taken whole


CHARACTERS = 8 * 2**10  # of the shortest part that is tried


CHARACTERS_PER_TOKEN = 32  # more than any language has on average


MARGIN_TOKENS = 64  # beyond those that are kept, which must not depend on where the part ends


Side = Literal["end", "start"]


def enough_ids(
    text: str, *, limit: int, side: Side, token_ids: Callable[[str], list[int]]
) -> list[int] | None:
    """More than `limit` token ids of which the first `limit` are the whole text's, or the last
    where the `start` is cut; None where that cannot be told without the whole text.

    They are those of a part, which ends between two words, where tokenisers divide a text, or
    anywhere in a text without spaces that loses its end. It is believed when one of half its length
    begins with the same tokens, many beyond the limit among them.
    """
    size = max(CHARACTERS, CHARACTERS_PER_TOKEN * limit)
    while 4 * size < len(text):
        half, part = _part(text, size, side), _part(text, 2 * size, side)
        if half is None or part is None:
            return None
        ids = token_ids(part)
        if _agree(token_ids(half), ids, limit, side):
            return ids
        size *= 4
    return None


def _part(text: str, size: int, side: Side) -> str | None:
    """At most `size` characters of the text, and at least half as many."""
    if side == "end":
        space = _space(text, size // 2, size)
        return text[: size if space is None else space]
    space = _space(text, len(text) - size, len(text) - size // 2)
    return None if space is None else text[space:]


def _space(text: str, start: int, end: int) -> int | None:
    """Where between the two a space follows a letter or a digit."""
    while (found := text.rfind(" ", start, end)) > 0:
        if text[found - 1].isalnum():
            return found
        end = found
    return None


def _agree(half: list[int], ids: list[int], limit: int, side: Side) -> bool:
    same = limit + MARGIN_TOKENS
    if min(len(half), len(ids)) < limit + same:
        return False
    return half[:same] == ids[:same] if side == "end" else half[-same:] == ids[-same:]
