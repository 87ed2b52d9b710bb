"""How many leading tokens every text with the same prompt has in common, as far as tries tell.

It knows token ids, and no tokenizer and no cache of keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters, digits, punctuation

__all__ = ["END_CHARACTERS", "PROBE_ENDINGS", "PROBE_TEXTS", "common_prefix_length"]

PROBE_ENDINGS = (
    "",
    *ascii_letters,
    *digits,
    *punctuation,
    *("The", "what", "How", "in", "is", "of", "to", "and"),
    *(" b", "  ", "\n", "\n\n", "\t", "é", "я", "東", "🦊", "ـ"),
)
"""Every kind of text that merges with what stands before it in a way of its own: a space at the
end of a prompt and the first letters of the text are one token in many vocabularies."""

END_CHARACTERS = 32
"""So much of a prompt's end is tried with all of them: a long one would keep its caller waiting."""

PROBE_TEXTS = ("", "a", "The 1", " b", "\n\n", "1", ".", "(", '"', "é", "я", "東", "🦊")
"""A few of them, for what cannot be cut to its end."""


def common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """The length of the longest prefix that all the rows begin with; 0 for fewer than two rows."""
    if len(rows) < 2:
        return 0
    # Between them in order stand all the others, so they share what these two share.
    first, last = min(rows, key=tuple), max(rows, key=tuple)
    for index, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return index
    return min(len(first), len(last))
