"""`InFlightTexts`: identical texts in flight are computed once.

A text that is planned while an identical one is planned or running is left out of its batch and
follows that one: it gets its vector when that one completes. Queries follow queries only, since
they would wait for ingestion otherwise. Every method is called under the engine's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from .batch import Segment
from .request import Priority, Request
from .token_chunk import TokenChunk

__all__ = ["Duplicate", "InFlightTexts"]

Duplicate = tuple[Request, TokenChunk, int]
"""The text at a place of a chunk of a request."""

FOLLOWED = {
    Priority.INTERACTIVE: (Priority.INTERACTIVE,),
    Priority.BULK: (Priority.INTERACTIVE, Priority.BULK),  # a query is done first
}


class InFlightTexts:
    """Who computes a text for whom, by digests of token ids that the ids themselves confirm."""

    def __init__(self) -> None:
        self._leaders: dict[Priority, dict[int, Duplicate]] = {
            priority: {} for priority in Priority
        }
        self._duplicates: dict[tuple[Priority, int], list[Duplicate]] = {}

    def __len__(self) -> int:
        """Texts in flight."""
        return sum(map(len, self._leaders.values()))

    def __repr__(self) -> str:
        following = sum(map(len, self._duplicates.values()))
        return f"InFlightTexts(in_flight={len(self)}, following={following})"

    def follows(self, request: Request, chunk: TokenChunk, place: int) -> bool:
        """Let a text follow an identical text, if it has one in flight."""
        digest = int(chunk.digests[place])
        return any(
            digest in self._leaders[priority]
            and self._follows(priority, digest, (request, chunk, place))
            for priority in FOLLOWED[request.priority]
        )

    def _follows(self, priority: Priority, digest: int, text: Duplicate) -> bool:
        if not _are_in_flight_texts(self._leaders[priority][digest], text):
            return False
        self._duplicates.setdefault((priority, digest), []).append(text)
        return True

    def lead(self, request: Request, chunk: TokenChunk, place: int) -> None:
        """A text is going to be computed: from now on others may follow it."""
        self._leaders[request.priority].setdefault(
            int(chunk.digests[place]), (request, chunk, place)
        )

    def leading(
        self, request: Request, chunk: TokenChunk, start: int, stop: int
    ) -> Iterator[tuple[int, int]]:
        """Of the texts `start:stop`, the runs of those that are to be computed: they lead."""
        first, queries, own = (
            start,
            self._leaders[Priority.INTERACTIVE],
            self._leaders[request.priority],
        )
        for place, digest in enumerate(chunk.digests[start:stop].tolist(), start):
            if (digest in own or digest in queries) and self.follows(request, chunk, place):
                if first < place:
                    yield first, place
                first = place + 1
            elif digest not in own:
                own[digest] = (request, chunk, place)
        if first < stop:
            yield first, stop

    def land(self, segments: Iterable[Segment]) -> Mapping[int, list[Duplicate]]:
        """Texts that are no longer in flight; who followed them, by their place in the batch."""
        duplicates = {}
        place = 0
        for request, chunk, start, stop, *_ in segments:
            leaders = self._leaders[request.priority]
            for index, digest in enumerate(chunk.digests[start:stop].tolist(), start):
                leader = leaders.get(digest)
                if leader is not None and leader[1] is chunk and leader[2] == index:
                    del leaders[digest]
                    found = self._duplicates.pop((request.priority, digest), None)
                    if found:
                        duplicates[place] = found
                place += 1
        return duplicates


def _are_in_flight_texts(leader: Duplicate, text: Duplicate) -> bool:
    a, b = leader[0], text[0]
    same_pass = a.route == b.route and a.prompt_tokens == b.prompt_tokens
    return same_pass and np.array_equal(leader[1].ids_of(leader[2]), text[1].ids_of(text[2]))
