"""How a tokenizer joins the two texts of a pair: found by trying, and compared with itself.

Most tokenizers put the same ids before, between and after the texts, whatever the texts are. Then
each text is tokenised once and a pair put together here. One that does otherwise is asked for every
pair as a whole.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..locks import fork_safe
from .token_types import typed_ids

__all__ = ["PairBackend", "PairFrame", "cut", "kept_tokens", "pair_backend"]

Side = Literal["end", "start"]


Joined = tuple[list[int], list[int]]
"""The ids of a pair and their types."""


_PROBES = (
    ("hello", "world"),
    ("Hello, World! It's 3.14 — naïve café, 東京 🦊", "  two  spaces\tand a\nline "),
    ("a b c d e f g h", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"),
    ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20", "a b c"),
    ("", "hello"),
    ("hello", ""),
)


_PROBE_ROOM = (5, 8, 11, 16)  # tokens that the texts of a probe may keep


@dataclass(frozen=True)
class PairFrame:
    """What stands around the texts of a pair: ids, and the token types of all that is there."""

    before: Joined
    between: Joined
    after: Joined
    query_type: int
    document_type: int

    @property
    def size(self) -> int:
        """Tokens that belong to neither text."""
        return len(self.before[0]) + len(self.between[0]) + len(self.after[0])

    def join(self, query: list[int], document: list[int]) -> Joined:
        """A pair of these texts."""
        ids = [*self.before[0], *query, *self.between[0], *document, *self.after[0]]
        types = [
            *self.before[1],
            *[self.query_type] * len(query),
            *self.between[1],
            *[self.document_type] * len(document),
            *self.after[1],
        ]
        return ids, types

    def typed(self) -> PairFrame:
        """The same with types in the ids."""
        return replace(
            self,
            before=_typed(self.before),
            between=_typed(self.between),
            after=_typed(self.after),
        )


def _typed(part: Joined) -> Joined:
    ids, types = part
    pairs = zip(ids, types, strict=True)
    return [token for one, kind in pairs for token in typed_ids([one], kind)], types


@dataclass(frozen=True, eq=False)
class PairBackend:
    """How a tokenizer joins pairs; without a `frame` by its own call."""

    tokenize: Callable[[Sequence[tuple[str, str]], int | None], list[Joined]]
    """(pairs, most tokens) -> ids and types of each, the longer text cut first."""
    frame: PairFrame | None
    has_types: bool
    """Whether it gives any token a type other than 0."""


def kept_tokens(query: int, document: int, room: int) -> tuple[int, int]:
    """How many tokens of each text stay when the longer one is cut first, to `room` in all.

    As the Rust tokenizers do it (`TruncationStrategy::LongestFirst`): the shorter text stays whole
    as long as it takes no more than the other one has left.
    """
    if query + document <= room:
        return query, document
    shorter, longer = sorted((query, document))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if query > document else (shorter, longer)


def pair_backend(tokenizer: Any) -> PairBackend:
    """How this transformers tokenizer joins pairs, on a copy of its own."""
    tokenizer = copy.deepcopy(tokenizer)  # each call sets truncation on the tokenizer itself
    tokenize = _own_call(tokenizer)
    frame = _find_frame(tokenizer, tokenize)
    if frame is not None and not _agrees(frame, tokenizer, tokenize):
        frame = None
    types = [kind for _, kinds in tokenize(_PROBES, None) for kind in kinds]
    return PairBackend(tokenize, frame, any(types))


def _own_call(
    tokenizer: Any,
) -> Callable[[Sequence[tuple[str, str]], int | None], list[Joined]]:
    lock = fork_safe(threading.Lock())

    def tokenize(pairs: Sequence[tuple[str, str]], limit: int | None) -> list[Joined]:
        if not pairs:
            return []
        cut = {"truncation": "longest_first", "max_length": limit} if limit else {}
        queries, documents = map(list, zip(*pairs, strict=True))
        with lock:
            encoded = tokenizer(queries, documents, padding=False, verbose=False, **cut)
        ids = [list(row) for row in encoded["input_ids"]]
        types = encoded.get("token_type_ids") or [[0] * len(row) for row in ids]
        return list(zip(ids, map(list, types), strict=True))

    return tokenize


def _bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _find_frame(
    tokenizer: Any, tokenize: Callable[[Sequence[tuple[str, str]], int | None], list[Joined]]
) -> PairFrame | None:
    query, document = (_bare(tokenizer, text) for text in _PROBES[0])
    ((ids, types),) = tokenize(_PROBES[:1], None)
    first = _place(ids, query, 0)
    if not query or not document or first is None:
        return None
    end = first + len(query)
    second = _place(ids, document, end)
    if second is None:
        return None
    stop = second + len(document)
    return PairFrame(
        (ids[:first], types[:first]),
        (ids[end:second], types[end:second]),
        (ids[stop:], types[stop:]),
        types[first],
        types[second],
    )


def _place(ids: list[int], part: list[int], start: int) -> int | None:
    ends = range(start, len(ids) - len(part) + 1)
    return next((place for place in ends if ids[place : place + len(part)] == part), None)


def _agrees(
    frame: PairFrame,
    tokenizer: Any,
    tokenize: Callable[[Sequence[tuple[str, str]], int | None], list[Joined]],
) -> bool:
    """Whether pairs put together by the frame are the tokenizer's own, whole and cut."""
    is_left = tokenizer.truncation_side == "left"
    texts = [[_bare(tokenizer, text) for text in pair] for pair in _PROBES]
    for room in (None, *_PROBE_ROOM):
        limit = None if room is None else room + frame.size
        expected = tokenize(_PROBES, limit)
        for (query, document), whole in zip(texts, expected, strict=True):
            if room is not None:
                keep = kept_tokens(len(query), len(document), room)
                query, document = (
                    cut(ids, count, is_left)
                    for ids, count in zip((query, document), keep, strict=True)
                )
            if frame.join(query, document) != whole:
                return False
    return True


def cut(ids: list[int], count: int, from_start: bool) -> list[int]:
    """`count` of the ids: the first, or the last where the start is cut."""
    return ids[len(ids) - count :] if from_start else ids[:count]
