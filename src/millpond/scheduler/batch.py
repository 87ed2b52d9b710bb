"""`Batch`, what one forward pass computes: which texts of which requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

from .prefix_cache import BlockAllocation
from .request import Priority, Request
from .token_chunk import TokenChunk

__all__ = ["Batch", "BatchShape", "Segment"]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How the texts of one route stand in a batch.

    `pad_to=None` packs them end to end. Otherwise all texts of a batch are padded to one length:
    their own, rounded up to a multiple of `pad_to` and no more than `max_length`. It depends on
    nothing but the text, so other texts cannot change the arithmetic.
    """

    pad_to: int | None = None
    max_length: int | None = None

    def padded_length(self, length: int) -> int | None:
        """The length a text of `length` tokens is padded to, or None when packed."""
        if self.pad_to is None:
            return None
        rounded = -(-length // self.pad_to) * self.pad_to
        return rounded if self.max_length is None else max(length, min(rounded, self.max_length))


class Segment(NamedTuple):
    """The texts `start:stop` of one chunk of one request."""

    request: Request
    chunk: TokenChunk
    start: int
    stop: int
    claims: tuple[BlockAllocation, ...] | None = None
    """Where each text's prefix is and where its keys are kept; None to compute all, keep none.

    Texts may share one: then it stands here for each of them."""
    until: int | None = None
    """Of a single text: the token before which this batch stops computing it."""
    computed_before: int = 0
    """Of a single text: tokens that earlier batches have computed."""

    @property
    def texts(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> int:
        """Tokens that this batch brings into vectors, or computes of a text it does not finish."""
        until = self.until
        whole = self.chunk.tokens(self.start, self.stop) if until is None else until
        return whole - self.computed_before

    @property
    def cached_tokens(self) -> int:
        """Those among them that are not computed."""
        claims = self.claims or ()
        return sum(claim.cached_tokens for claim in claims) - self.computed_before * bool(claims)

    @property
    def is_unfinished(self) -> bool:
        """Whether its text takes another batch."""
        return self.until is not None

    def uncached(self) -> Segment:
        """The same texts, computed whole."""
        return self._replace(claims=None, until=None, computed_before=0)


@dataclass(frozen=True)
class Batch:
    """One forward pass. All its texts take the same route through the model.

    `padded_length` is the common length texts are padded to, or None for a packed batch.
    `queue_s` is the longest any of them was ready and waiting, in seconds.
    """

    route: int
    segments: tuple[Segment, ...]
    padded_length: int | None = None
    queue_s: float = 0.0

    @classmethod
    def of_request(
        cls, request: Request, chunk: TokenChunk, shape: BatchShape, *, most_tokens: int
    ) -> Batch | None:
        """All of a request as the batch that it is when nothing else waits, without prefixes.

        None where several texts are more than `most_tokens`, would be divided otherwise, or where
        one is there twice.
        """
        lengths = chunk.lengths
        padded = shape.padded_length(int(lengths[0]))
        batch = cls(request.route, (Segment(request, chunk, 0, len(lengths)),), padded)
        if len(lengths) > 1 and (
            batch.computed_tokens > most_tokens
            or padded != shape.padded_length(int(lengths[-1]))
            or len(set(chunk.digests.tolist())) < len(lengths)
        ):
            return None
        return batch

    @cached_property
    def texts(self) -> int:
        return sum([segment.stop - segment.start for segment in self.segments])

    @cached_property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(map(attrgetter("tokens"), self.segments))

    @cached_property
    def cached_tokens(self) -> int:
        """Tokens among them that came out of a prefix cache."""
        if not self.uses_prefixes:
            return 0
        return sum(map(attrgetter("cached_tokens"), self.segments))

    @cached_property
    def computed_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        padded = self.padded_length
        return self.tokens - self.cached_tokens if padded is None else self.texts * padded

    @cached_property
    def uses_prefixes(self) -> bool:
        """Whether its texts have claims on a prefix cache."""
        return any(map(attrgetter("claims"), self.segments))

    @property
    def claims(self) -> Iterable[BlockAllocation]:
        """What its texts hold of a prefix cache, each claim once, however many share it."""
        if not self.uses_prefixes:
            return ()
        return dict.fromkeys(claim for segment in self.segments for claim in segment.claims or ())

    def uncached(self) -> Batch:
        """The batch with all of its texts computed whole."""
        return self._with(segment.uncached() for segment in self.segments)

    def left_out(self, alive: Batch) -> tuple[Segment, ...]:
        """Segments that a batch made of this one is without."""
        return tuple(segment for segment in self.segments if segment not in alive.segments)

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """The requests it holds texts of, each once."""
        return tuple(dict.fromkeys(map(attrgetter("request"), self.segments)))

    def texts_at(self, priority: Priority) -> int:
        """Texts of one priority, those that it does not finish left out."""
        texts = 0
        for request, _, start, stop, _, until, _ in self.segments:
            if request.priority is priority and until is None:
                texts += stop - start
        return texts

    @cached_property
    def has_bulk(self) -> bool:
        """Whether it is for ingestion too, texts that it does not finish included."""
        return Priority.BULK in map(attrgetter("request.priority"), self.segments)

    def alive(self) -> Batch:
        """The batch without the texts of requests that ended meanwhile."""
        return self._with(segment for segment in self.segments if not segment.request.dead)

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches with half of the texts each. Needs at least two texts."""
        half = self.texts // 2
        first, second, seen = [], [], 0
        for segment in self.segments:
            cut = min(max(half - seen, 0), segment.texts) + segment.start
            if cut > segment.start:
                first.append(segment._replace(stop=cut))
            if cut < segment.stop:
                second.append(segment._replace(start=cut))
            seen += segment.texts
        return self._with(first), self._with(second)

    def _with(self, segments: Iterable[Segment]) -> Batch:
        return Batch(self.route, tuple(segments), self.padded_length, self.queue_s)

    def __repr__(self) -> str:
        return (
            f"Batch(texts={self.texts}, tokens={self.tokens}, route={self.route}, "
            f"padded_length={self.padded_length}, requests={len(self.requests)})"
        )
