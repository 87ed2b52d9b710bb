"""`Twins`: identical texts in flight are computed once.

A text that is planned while an identical one is planned or running is left out of its batch and
follows that one: it gets its vector when that one lands. Queries follow queries only, since they
would wait for ingestion otherwise. Every method is called under the engine's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from .batch import Segment
from .job import Chunk, Job, Lane

__all__ = ["Follower", "Twins"]

Follower = tuple[Job, Chunk, int]
"""The text at a place of a chunk of a job."""


class Twins:
    """Who computes a text for whom, by digests of token ids that the ids themselves confirm."""

    def __init__(self) -> None:
        self._leaders: dict[int, Follower] = {}
        self._followers: dict[int, list[Follower]] = {}

    def __len__(self) -> int:
        """Texts in flight."""
        return len(self._leaders)

    def __repr__(self) -> str:
        following = sum(map(len, self._followers.values()))
        return f"Twins(in_flight={len(self)}, following={following})"

    def follows(self, job: Job, chunk: Chunk, place: int) -> bool:
        """Let a text follow its twin, if it has one in flight."""
        return self._follows(job, chunk, place, int(chunk.digests[place]))

    def _follows(self, job: Job, chunk: Chunk, place: int, digest: int) -> bool:
        leader = self._leaders.get(digest)
        if leader is None or not _are_twins(leader, (job, chunk, place)):
            return False
        self._followers.setdefault(digest, []).append((job, chunk, place))
        return True

    def lead(self, job: Job, chunk: Chunk, place: int) -> None:
        """A text is going to be computed: from now on others may follow it."""
        self._leaders.setdefault(int(chunk.digests[place]), (job, chunk, place))

    def leading(self, job: Job, chunk: Chunk, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Of the texts `start:stop`, the runs of those that are to be computed: they lead."""
        first, leaders = start, self._leaders
        for place, digest in enumerate(chunk.digests[start:stop].tolist(), start):
            if digest not in leaders:
                leaders[digest] = (job, chunk, place)
            elif self._follows(job, chunk, place, digest):
                if first < place:
                    yield first, place
                first = place + 1
        if first < stop:
            yield first, stop

    def land(self, segments: Iterable[Segment]) -> Mapping[int, list[Follower]]:
        """Texts that are no longer in flight; who followed them, by their place in the batch."""
        followers = {}
        place = 0
        for _, chunk, start, stop, *_ in segments:
            for index, digest in enumerate(chunk.digests[start:stop].tolist(), start):
                leader = self._leaders.get(digest)
                if leader is not None and leader[1] is chunk and leader[2] == index:
                    del self._leaders[digest]
                    found = self._followers.pop(digest, None)
                    if found:
                        followers[place] = found
                place += 1
        return followers


def _are_twins(leader: Follower, text: Follower) -> bool:
    a, b = leader[0], text[0]
    if b.lane is Lane.INTERACTIVE and a.lane is not Lane.INTERACTIVE:
        return False
    same_pass = a.route == b.route and a.prompt_tokens == b.prompt_tokens
    return same_pass and np.array_equal(leader[1].ids_of(leader[2]), text[1].ids_of(text[2]))
