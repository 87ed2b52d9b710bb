"""`SharedPrefixes`: how many leading tokens every text with the same prompt has in common.

It knows a function from texts to token ids, and asks it once for each prompt. It knows no
tokenizer and no cache of keys and values; whoever has one compares the ids themselves.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from string import ascii_letters, digits, punctuation

__all__ = ["SharedPrefixes"]

# Every kind of text that merges with what stands before it in a way of its own: a space at the
# end of a prompt and the first letters of the text are one token in many vocabularies.
_CONTINUATIONS = (
    "",
    *ascii_letters,
    *digits,
    *punctuation,
    *("The", "what", "How", "in", "is", "of", "to", "and"),
    *(" b", "  ", "\n", "\n\n", "\t", "é", "я", "東", "🦊", "ـ"),
)


class SharedPrefixes:
    """The shared length of the prompts asked for last, at most `capacity` of them.

    `token_ids` gives the ids of each text, whole. Any thread may ask.
    """

    def __init__(
        self,
        token_ids: Callable[[Sequence[str]], Sequence[Sequence[int]]],
        *,
        capacity: int = 256,
    ) -> None:
        self._token_ids = token_ids
        self._capacity = capacity
        self._lock = threading.Lock()
        self._lengths: OrderedDict[str, int] = OrderedDict()  # of this object, under the lock

    def __repr__(self) -> str:
        return f"SharedPrefixes(prompts={len(self._lengths)}, capacity={self._capacity})"

    def length(self, prompt: str) -> int:
        """Leading token ids that do not depend on what follows `prompt`, as far as was tried."""
        with self._lock:
            if prompt in self._lengths:
                self._lengths.move_to_end(prompt)
                return self._lengths[prompt]
        found = _common(self._token_ids([prompt + text for text in _CONTINUATIONS]))
        with self._lock:
            self._lengths[prompt] = found
            while len(self._lengths) > self._capacity:
                self._lengths.popitem(last=False)
        return found


def _common(rows: Sequence[Sequence[int]]) -> int:
    """The length of the longest prefix that all the rows begin with."""
    # Between them in order stand all the others, so they share what these two share.
    first, last = min(rows, key=tuple), max(rows, key=tuple)
    for index, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return index
    return min(len(first), len(last))
