"""The token ids of a long text, from parts of it.

Tokenising takes up to 500 bytes a character, and handing over the ids holds the interpreter. Of a
text that is far too long for the model only the first or the last few tokens are kept. It knows
characters, and a function that gives their token ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain, pairwise
from typing import Literal

__all__ = ["LONG_TEXT", "all_ids", "enough_ids"]

LONG_TEXT = 64 * 2**10  # characters; a text up to this length is taken whole
CHARACTERS = 8 * 2**10  # of the shortest part that is tried
CHARACTERS_PER_TOKEN = 32  # more than any language has on average
MARGIN_TOKENS = 64  # beyond those that are kept, which must not depend on where the part ends
PART = 128 * 2**10
"""Characters of the parts of a text of which all ids are wanted, at the most."""
WINDOW = 2 * 2**10  # characters on either side of where two parts meet
WORD = 4 * 2**10
"""Characters of an unbroken run of letters and digits, more than a word has."""
_LONG_WORD = re.compile(f"[A-Za-z0-9]{{{2 * WORD + 1},}}")
Side = Literal["end", "start"]

TokenIds = Callable[[str], list[int]]


def enough_ids(text: str, *, limit: int, side: Side, token_ids: TokenIds) -> list[int] | None:
    """More than `limit` token ids of which the first `limit` are the whole text's, or the last
    where the `start` is cut; None where that cannot be told without the whole text.

    They are those of a part, which ends between two words, where tokenisers divide a text, or
    anywhere in a text without spaces that loses its end. It is believed when one of half its length
    begins with the same tokens, many beyond the limit among them.
    """
    whole, text = text, _with_short_words(text, token_ids)
    if len(text) <= LONG_TEXT and text != whole:
        return token_ids(text)
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


def all_ids(text: str, token_ids: TokenIds) -> list[int] | None:
    """The token ids of a whole text, without special tokens; None where parts do not give them.

    Parts end between two words, and are believed where the text around the place has the same
    tokens when it is tokenised in one.
    """
    text = _with_short_words(text, token_ids)
    ends = [0]
    while len(text) - ends[-1] > PART:
        end = _space(text, ends[-1] + PART // 2, ends[-1] + PART)
        if end is None or not _may_part(text, end, token_ids):
            return None
        ends.append(end)
    parts = (token_ids(text[start:end]) for start, end in pairwise([*ends, len(text)]))
    return list(chain.from_iterable(parts))


def _may_part(text: str, place: int, token_ids: TokenIds) -> bool:
    before, after = text[place - WINDOW : place], text[place : place + WINDOW]
    return token_ids(before) + token_ids(after) == token_ids(before + after)


def _with_short_words(text: str, token_ids: TokenIds) -> str:
    """The text with its longest words cut where that makes no difference: to some tokenizers any
    word above a length is one unknown token."""
    if not any(text[at : at + WORD].isalnum() for at in range(0, len(text) - WORD, WORD)):
        return text  # a hundred times as quick as searching for them

    def shortened(found: re.Match[str]) -> str:
        word = found[0][: 2 * WORD]
        agree = token_ids(word) == token_ids(word[:WORD])
        return word[:WORD] if agree else found[0]

    return _LONG_WORD.sub(shortened, text)


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
