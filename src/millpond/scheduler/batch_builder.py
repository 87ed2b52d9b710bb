"""`BatchBuilder`, a batch in the making.

It decides how much of a request's next texts goes in, and leaves out duplicates of texts in flight.
Which request is next is not its business.

Texts that continue from prefixes bring keys beside the tokens that are computed. Those are bounded
too: a batch of short ends after one long prefix would fill the memory otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from .batch import Batch, BatchShape, Segment
from .deduplication import InFlightTexts
from .prefix_cache import BlockAllocation, PrefixCache
from .request import PendingSpan, Request

__all__ = ["BatchBuilder", "most_keys"]

KEYS_PER_TOKEN = 4  # of a batch as large as may be
FEWEST_KEYS = 32_768  # a bound below this saves no memory worth speaking of


def most_keys(max_batch_tokens: int) -> int:
    """Keys that the texts of a batch with prefixes may attend to; a single one goes in anyway."""
    return max(FEWEST_KEYS, KEYS_PER_TOKEN * max_batch_tokens)


@dataclass(eq=False)
class BatchBuilder:
    """A batch in the making. With `prefixes`, its texts continue from what that cache holds."""

    shapes: tuple[BatchShape, ...]
    tokens_left: int
    now_s: float
    in_flight_texts: InFlightTexts = field(default_factory=InFlightTexts)
    prefixes: PrefixCache | None = None
    keys_left: int = FEWEST_KEYS
    prefixed_tokens_left: int = sys.maxsize
    """Tokens that texts which continue from prefixes may still bring; the first brings its own."""
    most_of_a_text: int = 0
    """Tokens of one text, where they are more than those left: dividing is for several texts."""
    may_skip_prefixes: bool = False
    """Whether texts without a prompt need not be looked up: recent look-ups found too little."""
    parts_taken: int = 0
    """Texts in it that were computed in part already."""
    left_parts: int = 0
    """Texts that were left because another cache has a part of them."""
    waiting_beside: int = 0
    """Tokens that wait in the queue beside those of the request whose turn it is."""
    route: int | None = None
    padded_length: int | None = None
    oldest_ready_s: float = float("inf")
    segments: list[Segment] = field(default_factory=list)

    def take(self, request: Request, span: PendingSpan) -> bool:
        """Move the span's first texts into the batch, as many as fit; whether any left the span.

        The first text of a batch always goes in, or a part of it. Duplicates of texts in flight
        take no room.
        """
        if self.route not in (None, request.route) or (self.segments and self.tokens_left <= 0):
            return False
        if not self.segments and self._skips_prefixes(request, span):
            self.prefixes = None
        if self.prefixes is not None:
            return self._take_one(request, span, self.prefixes)
        shape = self.shapes[request.route]
        count = self._packed_fit(span) if shape.pad_to is None else self._padded_fit(span, shape)
        count = max(count, 0 if self.segments else 1)
        padded = None
        if shape.pad_to is not None:
            padded = shape.padded_length(int(span.chunk.lengths[span.start]))
        for start, stop in self.in_flight_texts.leading(
            request, span.chunk, span.start, span.start + count
        ):
            segment = Segment(request, span.chunk, start, stop)
            self.padded_length = padded
            self._add(segment, span, segment.tokens if padded is None else segment.texts * padded)
        span.start += count
        return count > 0

    def _skips_prefixes(self, request: Request, span: PendingSpan) -> bool:
        """Whether a batch that begins with this text does without: one in parts cannot."""
        fits = span.chunk.lengths[span.start] <= max(self.tokens_left, self.most_of_a_text)
        return self.may_skip_prefixes and not request.shared_tokens and bool(fits)

    def _packed_fit(self, span: PendingSpan) -> int:
        if span.tokens <= self.tokens_left:
            return span.stop - span.start
        offsets = span.chunk.offsets
        end = offsets[span.start] + self.tokens_left
        return int(np.searchsorted(offsets[: span.stop + 1], end, side="right")) - 1 - span.start

    def _padded_fit(self, span: PendingSpan, shape: BatchShape) -> int:
        lengths = span.chunk.lengths[span.start : span.stop]
        padded = shape.padded_length(int(lengths[0])) or 1
        if self.padded_length not in (None, padded):
            return 0
        return min(_leading(lengths, padded, shape), self.tokens_left // padded)

    def _add(self, segment: Segment, span: PendingSpan, tokens: int) -> None:
        self.route = segment.request.route
        self.tokens_left -= tokens
        self.oldest_ready_s = min(self.oldest_ready_s, span.ready_s)
        self.segments.append(segment)

    # With prefixes, where what a text costs is known only when it is its turn.

    def _take_one(self, request: Request, span: PendingSpan, prefixes: PrefixCache) -> bool:
        chunk, place = span.chunk, span.start
        is_elsewhere = span.claim is not None and span.claim.cache is not prefixes
        if is_elsewhere:
            self.left_parts += 1
            return False
        if span.claim is None and self.in_flight_texts.follows(request, chunk, place):
            span.start += 1
            return True
        if self.segments and chunk.lengths[place] > self.keys_left:
            return False
        ids, before = chunk.ids_of(place), span.computed_tokens
        # A text that was cut may have lost its prompt, and there is no room to pin just anything.
        pin = request.is_pinned and not request.truncated[chunk.rows[place]]
        hold = partial(prefixes.claim, ids, owner=self, split=request.shared_tokens, pin=pin)
        found = self._fitting(prefixes, hold, in_one_batch=span.in_one_batch)
        if found is None:
            return False
        claim, until = found
        if span.claim is not None:
            span.release()
            self.parts_taken += 1
        if until is None:
            self.in_flight_texts.lead(request, chunk, place)
        segment = Segment(request, chunk, place, place + 1, (claim,), until, before)
        computed = segment.tokens - segment.cached_tokens
        self._add(segment, span, computed)
        self.prefixed_tokens_left -= computed
        self.keys_left -= until or len(ids)
        span.start += 1
        if until is None and claim.is_all_there and claim.cached_so_far == request.shared_tokens:
            self._add_identical_prefix(request, span, claim, prefixes)
        return True

    def _add_identical_prefix(
        self, request: Request, span: PendingSpan, claim: BlockAllocation, prefixes: PrefixCache
    ) -> None:
        """Take the texts that follow one with its prompt in the cache and no other block.

        They share its claim: looked up one by one, each would be given the same blocks.
        """
        chunk, start, shared = span.chunk, span.start, request.shared_tokens
        lengths = chunk.lengths[start : span.stop]  # descending
        # One token more than cached is computed. Shorter ones would not add up in order below.
        lengths = lengths[: np.searchsorted(-lengths, -shared)]
        if not len(lengths) or lengths[0] >= shared + prefixes.block_tokens:
            return
        room = min(self.tokens_left, self.prefixed_tokens_left)
        count = min(
            int(np.searchsorted(np.cumsum(lengths - shared), room, side="right")),
            int(np.searchsorted(np.cumsum(lengths), self.keys_left, side="right")),
        )
        heads = chunk.ids[chunk.offsets[start - 1 : start + count, None] + np.arange(shared)]
        differs = (heads[1:] != heads[0]).any(axis=1)
        count = int(differs.argmax()) if differs.any() else count
        span.start += count
        for first, stop in self.in_flight_texts.leading(request, chunk, start, start + count):
            run = lengths[first - start : stop - start]
            prefixes.share(claim, run)
            segment = Segment(request, chunk, first, stop, (claim,) * len(run))
            computed = segment.tokens - segment.cached_tokens
            self._add(segment, span, computed)
            self.prefixed_tokens_left -= computed
            self.keys_left -= segment.tokens

    def _fitting(
        self, prefixes: PrefixCache, hold: Callable[..., BlockAllocation], *, in_one_batch: bool
    ) -> tuple[BlockAllocation, int | None] | None:
        """A claim on a text, and where this batch stops computing it; None if it has to wait."""
        claim = hold()
        new, most = claim.length - claim.cached_tokens, max(self.tokens_left, self.most_of_a_text)
        room = min(self.tokens_left, self.prefixed_tokens_left) if self.segments else most
        if new <= room:
            return claim, None
        until = 0
        if new > most and not in_one_batch:
            until = _last_end(claim, self._unadmitted_for_a_part(most, prefixes.block_tokens))
        if not until and not self.segments:  # there are no blocks to keep a part in
            return claim, None
        prefixes.cancel(claim)
        return (hold(until=until), until) if until else None

    def _unadmitted_for_a_part(self, most: int, block_tokens: int) -> int:
        """Tokens of a text that is longer than the batch; 0 where too few are left to be worth it.

        Where others wait it leaves them room, but for half of the batch at most.
        """
        half = most // 2
        if self.segments:
            return self.tokens_left if self.tokens_left >= half else 0
        return min(most, max(half, most - self.waiting_beside, block_tokens))

    def batch(self) -> Batch:
        """The batch as it is now. It has at least one segment."""
        assert self.route is not None
        segments = tuple(_joined(self.segments))
        return Batch(self.route, segments, self.padded_length, self.now_s - self.oldest_ready_s)

    def compute_whole(self) -> None:
        """Use no prefixes after all, and keep none. Texts that need several batches stay."""
        prefixes = self.prefixes
        if prefixes is None or any(s.until or s.computed_before for s in self.segments):
            return
        for claim in dict.fromkeys(c for segment in self.segments for c in segment.claims or ()):
            prefixes.cancel(claim)
        self.segments = [segment.uncached() for segment in self.segments]


def _last_end(claim: BlockAllocation, room: int) -> int:
    """Where the last block ends before which no more than `room` tokens are new; 0 if none does."""
    ends = np.cumsum(claim.sizes)
    fitting = ends[ends <= claim.cached_tokens + room]
    until = int(fitting[-1]) if len(fitting) else 0
    return until if until > claim.cached_tokens else 0


def _joined(segments: Sequence[Segment]) -> Sequence[Segment]:
    """Neighbours of one chunk as one segment."""
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if last is not None and _continues(last, segment):
            claims = None if last.claims is None else (*last.claims, *(segment.claims or ()))
            joined[-1] = last._replace(stop=segment.stop, claims=claims)
        else:
            joined.append(segment)
    return joined


def _continues(last: Segment, segment: Segment) -> bool:
    if last.chunk is not segment.chunk or last.stop != segment.start:
        return False
    return not any((last.until, segment.until, last.computed_before, segment.computed_before))


def _leading(lengths: npt.NDArray[np.int64], padded: int, shape: BatchShape) -> int:
    """How many of these descending lengths are padded to the same length as the first."""
    assert shape.pad_to is not None
    shorter = (padded - 1) // shape.pad_to * shape.pad_to
    return int(np.searchsorted(-lengths, -shorter, side="left"))
