"""`Scheduler`: waiting requests and a token budget in, the next `Batch` out.

The policy, all of it:

- A batch is planned only when the runner can take one, so it holds whatever came meanwhile.
- Queries first. While none is waiting, bulk texts run; a batch serves both priorities only when
  bulk has aged past the starvation limit and takes the queries along.
- Workers that are free divide what waits evenly, and some may take nothing but queries.
- While queries come in and have no worker of their own, a bulk batch is cut to what runs in a
  share of `max_query_wait_s`, by the speed seen so far: a half, or a third where a worker takes two
  batches at a time. A query waits for those ahead of it, and at most as long again as one of them
  for aged bulk in its own.
- Bulk has aged when queries have kept it waiting for `STARVATION_LIMIT` times
  `max_query_wait_s`.
- Requests of one priority take turns, so a small request does not wait for a large one to end.
- A text that is identical to one in flight is not planned; it gets that one's vector.
- With a prefix cache a text costs the tokens that the cache does not have, and one that is longer
  than a batch is computed in parts, others going in beside and between them.

It never reads a clock, and every method is called under the engine's lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInput
from .batch import Batch, BatchShape, Segment
from .batch_builder import BatchBuilder, most_keys
from .deadlines import Deadlines
from .deduplication import Duplicate, InFlightTexts
from .feedback import BulkSpeed, LookupBackoff
from .prefix_cache import PrefixCache
from .request import PendingSpan, Priority, Request
from .request_queue import RequestQueue
from .token_chunk import TokenChunk

__all__ = ["Claim", "Scheduler"]

STARVATION_LIMIT = 4.0
QUERY_MEMORY_S = 5.0  # how long after a query bulk batches stay short
QUERIES_NEAR_S = 0.2  # how long after a query others are about to come
# Shorter ones are mostly overhead, and would make the speed they are cut by look ever lower.
MIN_SHORT_BATCH_TOKENS = 64
MIN_SHARE_TOKENS = 64  # fewer are not worth dividing
TOKENIZE_AHEAD_BATCHES = 4
FIRST_TOKENS = 8192  # tokenised at a time where nothing is ready
Claim = tuple[Request, npt.NDArray[np.int64]]
"""A request, and the places in it of texts to tokenise."""
REGROWTH = 1.02  # after running out of memory, a batch that fits lets the next be larger by this


class Scheduler:
    """Who runs next.

    `shapes[route]` says how texts of that route stand in a batch, and `depth` how many batches a
    worker takes before the first is done. Where `queries_have_workers` of their own, bulk batches
    stay long. Each replica of the model has a prefix cache of its own among `caches`, or none has.
    """

    def __init__(
        self,
        shapes: Sequence[BatchShape],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_query_wait_s: float,
        depth: int = 1,
        workers: int = 1,
        query_workers: int = 0,
        min_short_batch_tokens: int = MIN_SHORT_BATCH_TOKENS,
        caches: Sequence[PrefixCache] = (),
        min_saved_tokens: int = 0,
        max_prefixed_tokens: int | None = None,
    ) -> None:
        self.shapes = tuple(shapes)
        self.max_batch_tokens = max_batch_tokens
        self._most_batch_tokens = max_batch_tokens
        self.max_query_wait_s = max_query_wait_s
        # A query may find `depth` bulk batches before it, and aged bulk in its own.
        self._short_batch_s = max_query_wait_s / (depth + 1)
        self._queries_have_workers = query_workers > 0
        self._ahead_batches = max(TOKENIZE_AHEAD_BATCHES, 2 * workers)
        self.undivided_tokens = max(MIN_SHARE_TOKENS, min_short_batch_tokens)
        self.caches = tuple(caches)
        self._lost_caches: set[PrefixCache] = set()
        self._min_saved_tokens = min_saved_tokens
        self._max_prefixed_tokens = max_prefixed_tokens or max_batch_tokens
        self._lookups = LookupBackoff()
        self._parts_waiting = 0  # texts that are computed in part and hold blocks
        self._in_flight_texts = InFlightTexts()
        self.queues = {priority: RequestQueue(max_queue_tokens) for priority in Priority}
        self._queues = self.queues[Priority.INTERACTIVE], self.queues[Priority.BULK]
        self._deadlines = Deadlines()
        self._last_query_s = -float("inf")
        self._bulk_waits_since_s: float | None = None  # None while no bulk text is ready
        self._bulk_speed = BulkSpeed(min_short_batch_tokens)

    # Requests in.

    def submit(self, request: Request, now_s: float, chunk: TokenChunk | None = None) -> None:
        """Take a request in; `chunk` holds all of its texts when they are tokenised already."""
        if request.deadline_s is not None:
            self._deadlines.add(request, request.deadline_s)
        if chunk is not None:
            request.adopt(chunk, now_s)
        self.queues[request.priority].enter(request)
        self._note_ready(request, now_s)

    def to_tokenize(self) -> Sequence[Priority]:
        """Priorities of which `next_to_tokenize` may find texts."""
        most = self.max_batch_tokens * self._ahead_batches
        found = []
        for priority, queue in self.queues.items():
            if queue.untokenized and queue.ready_tokens < most:
                found.append(priority)
        return found

    def next_to_tokenize(self, priority: Priority) -> Sequence[Claim]:
        """Claim the next texts of a priority to tokenise, a few batches ahead.

        They are of one request or of several.
        """
        claims: list[Claim] = []
        most = self.max_batch_tokens * self._ahead_batches
        # Where nothing is ready a worker may be waiting: a little now, more beside it.
        first = min(self.max_batch_tokens, FIRST_TOKENS)
        left = min(most, max(first, 2 * self.queues[priority].ready_tokens))
        while left > 0 and priority in self.to_tokenize():
            claimed = self.queues[priority].next_to_tokenize(left)
            if claimed is None:
                break
            request, rows = claimed
            claims.append(claimed)
            left -= request.guessed_tokens(rows)
        return claims

    def ready(self, request: Request, chunk: TokenChunk, now_s: float) -> None:
        """Texts that were claimed are tokenised. Nothing happens if the request ended meanwhile."""
        if not request.dead:
            self.queues[request.priority].ready(request, chunk, now_s)
            self._note_ready(request, now_s)

    def has_queries_near(self, now_s: float) -> bool:
        """Whether queries come in."""
        return now_s - self._last_query_s < QUERIES_NEAR_S

    def refuse(self, request: Request, errors: Mapping[int, InvalidInput]) -> None:
        """Texts that were claimed cannot be accepted after all: they have errors."""
        if not request.dead:
            rows = list(errors)
            self.queues[request.priority].refuse(request, request.guessed_tokens(rows))
            for row, error in errors.items():
                request.fail(row, error)
            self.queues[request.priority].admit()

    def _note_ready(self, request: Request, now_s: float) -> None:
        if request.priority is Priority.INTERACTIVE:
            self._last_query_s = now_s
        elif self._bulk_waits_since_s is None and self.queues[Priority.BULK].ready_requests:
            self._bulk_waits_since_s = now_s

    # Requests out.

    def forget(self, request: Request) -> None:
        """A request ended early: nothing more of it is planned."""
        if not request.dead:
            queue = self.queues[request.priority]
            for claim in queue.forget(request):
                assert claim.cache is not None
                claim.cache.release(claim)
                self._parts_waiting -= 1
            queue.admit()
            if not self.queues[Priority.BULK].ready_requests:
                self._bulk_waits_since_s = None

    def expired(self, now_s: float) -> list[Request]:
        """The requests whose deadline has passed, each once; nothing more of them is planned."""
        expired: list[Request] = []
        while self._deadlines and (request := self._deadlines.take_passed(now_s)) is not None:
            self.forget(request)
            expired.append(request)
        return expired

    def next_deadline(self) -> float | None:
        """The earliest deadline of a request that has not ended."""
        return self._deadlines.earliest()

    # Batches.

    @property
    def holds_parts(self) -> bool:
        """Whether texts wait of which one of several replicas has computed a part."""
        return len(self.caches) > 1 and self._parts_waiting > 0

    def next_batch(
        self,
        now_s: float,
        *,
        priorities: Collection[Priority] = tuple(Priority),
        bulk_shares: int = 1,
        query_shares: int = 1,
        replica: int = 0,
    ) -> Batch | None:
        """The next forward pass of a replica with texts of these priorities; None if none is ready.

        What waits in a queue is divided evenly among its shares, the workers that are free for it.
        """
        queries, bulk = self._queues
        while (queries.ready_requests and Priority.INTERACTIVE in priorities) or (
            bulk.ready_requests and Priority.BULK in priorities
        ):
            cache = self.caches[replica] if self.caches else None
            builder = self._filled(now_s, priorities, bulk_shares, query_shares, cache)
            if builder.segments:
                return builder.batch()
            # All of it follows texts in flight, and something else may have waited behind it; or
            # it is left to another replica, and bulk is not.
            if builder.left_parts:
                if Priority.INTERACTIVE not in priorities:
                    return None
                priorities = [each for each in priorities if each is Priority.BULK]
        return None

    def _filled(
        self,
        now_s: float,
        priorities: Collection[Priority],
        bulk_shares: int,
        query_shares: int,
        cache: PrefixCache | None,
    ) -> BatchBuilder:
        interactive, bulk = self._queues
        builder = BatchBuilder(
            self.shapes, self.max_batch_tokens, now_s, self._in_flight_texts, cache
        )
        builder.may_skip_prefixes = not self._parts_waiting and self._lookups.may_skip()
        builder.keys_left = most_keys(self.max_batch_tokens)
        builder.prefixed_tokens_left = self._max_prefixed_tokens
        takes_queries = bool(interactive.ready_requests) and Priority.INTERACTIVE in priorities
        takes_bulk = bool(bulk.ready_requests) and Priority.BULK in priorities
        if takes_bulk and (not takes_queries or self._bulk_is_starved(now_s)):
            builder.most_of_a_text = self._bulk_budget(now_s)
            bulk_budget = min(builder.most_of_a_text, self._share(bulk, bulk_shares))
            builder.tokens_left = bulk_budget
            bulk.fill(builder)
            bulk.admit()
            self._bulk_waits_since_s = now_s if bulk.ready_requests else None
            builder.tokens_left += self.max_batch_tokens - bulk_budget
        if takes_queries:
            builder.most_of_a_text = self.max_batch_tokens
            builder.tokens_left = min(builder.tokens_left, self._share(interactive, query_shares))
            interactive.fill(builder)
            interactive.admit()
        self._drop_unprofitable_prefixes(builder)
        return builder

    def _drop_unprofitable_prefixes(self, builder: BatchBuilder) -> None:
        """Compute a batch whole whose prefixes save too little, and note whether they do."""
        self._parts_waiting -= builder.parts_taken
        if builder.prefixes is None or not builder.segments:
            return
        tokens = sum(segment.tokens for segment in builder.segments)
        saved = sum(segment.cached_tokens for segment in builder.segments)
        pays = saved >= self._min_saved_tokens
        self._lookups.note(pays)
        if not pays and tokens <= self.max_batch_tokens:
            builder.compute_whole()

    def _share(self, queue: RequestQueue, shares: int) -> int:
        """Tokens of one batch where `shares` divide what waits in a queue."""
        if shares <= 1:
            return self.max_batch_tokens
        even = -(-queue.waiting_tokens // shares)
        return min(self.max_batch_tokens, max(self.undivided_tokens, even))

    def _bulk_is_starved(self, now_s: float) -> bool:
        since_s = self._bulk_waits_since_s
        return since_s is not None and now_s - since_s >= STARVATION_LIMIT * self.max_query_wait_s

    def _bulk_budget(self, now_s: float) -> int:
        if self._queries_have_workers or now_s - self._last_query_s > QUERY_MEMORY_S:
            return self.max_batch_tokens
        return min(self.max_batch_tokens, self._bulk_speed.tokens_in(self._short_batch_s))

    def completed(
        self, batch: Batch, now_s: float, *, keep: bool
    ) -> Mapping[int, Sequence[Duplicate]]:
        """A batch ran. With `keep` its keys and values are good to continue from.

        Texts it did not finish are put back. Returned are the texts that wait for those it did,
        by their place in the batch.
        """
        keep = keep and not any(claim.cache in self._lost_caches for claim in batch.claims)
        unfinished = [s for s in batch.segments if s.is_unfinished and not s.request.dead]
        self._settle(batch, keep=keep, but_hold=unfinished if keep else ())
        for segment in unfinished:
            self._put_back(segment, now_s, keep=keep)
        return self._in_flight_texts.land(batch.segments)

    def lose_replica(self, replica: int) -> None:
        """A replica is gone, and its cache with it. Nothing more is planned for it."""
        if self.caches:
            lost = self.caches[replica]
            self._lost_caches.add(lost)
            for queue in self._queues:
                self._parts_waiting -= queue.release_parts(lost)

    def failed(self, batch: Batch) -> None:
        """A batch failed as a whole; its texts run again, in parts and without prefixes."""
        self._settle(batch, keep=False)

    def dropped(self, segments: Iterable[Segment], now_s: float) -> None:
        """Texts of a failed batch do not run again: those that wait for them do so themselves."""
        for duplicates in self._in_flight_texts.land(segments).values():
            for request, chunk, place in duplicates:
                if not request.dead:
                    self._wait_again(request, PendingSpan(chunk, place, place + 1, now_s), now_s)

    def _settle(self, batch: Batch, *, keep: bool, but_hold: Sequence[Segment] = ()) -> None:
        """Let go of what a batch held of the prefix cache, but for those texts."""
        held = {claim for segment in but_hold for claim in segment.claims or ()}
        for claim in batch.claims:
            assert claim.cache is not None
            claim.cache.settle(claim, keep=keep)
            if claim not in held:
                claim.cache.release(claim)

    def _put_back(self, segment: Segment, now_s: float, *, keep: bool) -> None:
        """Let a text that was computed in part wait for its next turn, holding its blocks."""
        assert segment.claims is not None
        claim = segment.claims[0] if keep else None
        if claim is not None:
            self._parts_waiting += 1
        # In parts again, one whose own numbers overflow would never come to its end.
        whole = not keep
        span = PendingSpan(
            segment.chunk, segment.start, segment.stop, now_s, claim, whole, is_rest=True
        )
        self._wait_again(segment.request, span, now_s)

    def _wait_again(self, request: Request, span: PendingSpan, now_s: float) -> None:
        self.queues[request.priority].put_back(request, span)
        self._note_ready(request, now_s)

    def check_idle(self) -> None:
        """Where nothing is planned or running, assert that no block is held."""
        assert self._parts_waiting == 0
        for cache in self.caches:
            cache.check_idle()

    def record(self, batch: Batch, seconds: float) -> None:
        """Learn from a finished batch what fits, and how many tokens a second bulk runs at."""
        if batch.computed_tokens * 2 > self.max_batch_tokens:
            grown = int(self.max_batch_tokens * REGROWTH) + 1
            self.max_batch_tokens = min(self._most_batch_tokens, grown)
        if seconds > 0 and batch.has_bulk:
            self._bulk_speed.record(batch.computed_tokens, seconds)

    def shrink(self, max_batch_tokens: int) -> None:
        """A batch did not fit in memory: form no larger one than this, and grow back slowly."""
        self.max_batch_tokens = max(1, min(self.max_batch_tokens, max_batch_tokens))

    def __repr__(self) -> str:
        interactive, bulk = self._queues
        return (
            f"Scheduler(max_batch_tokens={self.max_batch_tokens}, "
            f"interactive={interactive!r}, bulk={bulk!r})"
        )
