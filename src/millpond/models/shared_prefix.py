"""How many leading tokens every text with the same prompt has in common, as far as tries tell.

It knows token ids, and no tokenizer and no cache of keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters, digits, punctuation

__all__ = ["CONTINUATIONS", "common_prefix_length"]

CONTINUATIONS = (
    "",
    *ascii_letters,
    *digits,
    *punctuation,
    *("The", "what", "How", "in", "is", "of", "to", "and"),
    *(" b", "  ", "\n", "\n\n", "\t", "é", "я", "東", "🦊", "ـ"),
)
"""Every kind of text that merges with what stands before it in a way of its own: a space at the
end of a prompt and the first letters of the text are one token in many vocabularies."""


def common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """The length of the longest prefix that all the rows begin with."""
    # Between them in order stand all the others, so they share what these two share.
    first, last = min(rows, key=tuple), max(rows, key=tuple)
    for index, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return index
    return min(len(first), len(last))
