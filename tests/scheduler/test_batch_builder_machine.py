"""Plans with a prefix cache and duplicates, under any order of what may happen to their batches.

`Scheduler` runs alone, beside a memory whose slots know the whole beginning they were filled with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from slot_memory import SlotMemory, SlotUse
from tokenized_requests import Ids, chunk_of, request_of, scheduler_of

from millpond.scheduler.batch import Batch
from millpond.scheduler.deduplication import Duplicate
from millpond.scheduler.prefix_cache import PrefixCache
from millpond.scheduler.request import Priority, Request

WORKERS_PRIORITIES = ([Priority.INTERACTIVE], [Priority.BULK], tuple(Priority))

# Few, with much in common, so that most meet an earlier one's blocks, or a twin.
TEXTS = st.builds(
    lambda base, length: base[:length],
    st.sampled_from([(0,) * 30, (0, 0, 0, 0, 1) * 6, (0, 0, 0, 0, 0, 1) * 5, (1,) + (0,) * 29]),
    st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 30]),
)
PRIORITIES = st.sampled_from(Priority)
WHICH = st.integers(0, 10)


@dataclass(eq=False)
class Flight:
    """A batch that is planned and not home."""

    batch: Batch
    use: SlotUse | None
    replica: int = 0
    is_part: bool = False


class Machine(RuleBasedStateMachine):
    """`ended` counts, for each text, how often it got its vector or its error."""

    @initialize(
        blocks=st.sampled_from([0, 1, 3, 8, 16, 64]),
        block_tokens=st.integers(1, 4),
        budget=st.sampled_from([4, 8, 16]),
        digest=st.sampled_from([hash, hash, lambda key: hash(key) % 5]),
        min_saved_tokens=st.sampled_from([0, 0, 6, 100]),
        max_prefixed_tokens=st.sampled_from([None, None, 3]),
        with_cache=st.sampled_from([True, True, True, False]),
        room=st.sampled_from([20, 10_000]),
        gives_nan=st.booleans(),
        digests=st.sampled_from([None, 3]),
        replicas=st.integers(1, 3),
    )
    def start(
        self,
        blocks: int,
        block_tokens: int,
        budget: int,
        digest: Any,
        min_saved_tokens: int,
        max_prefixed_tokens: int | None,
        with_cache: bool,
        room: int,
        gives_nan: bool,
        digests: int | None,
        replicas: int,
    ) -> None:
        self.digests = digests
        self.gives_nan = gives_nan  # in the end always, before that at times
        self.memories = [SlotMemory(block_tokens) for _ in range(replicas)]
        self.replicas = [*range(replicas)]  # that are not lost
        caches = [
            PrefixCache(blocks, block_tokens=block_tokens, digest=digest) for _ in self.memories
        ]
        self.scheduler = scheduler_of(
            budget=budget,
            caches=caches if with_cache else (),
            max_queue_tokens=room,
            min_saved_tokens=min_saved_tokens if with_cache else 0,
            max_prefixed_tokens=max_prefixed_tokens,
        )
        self.now_s = 0.0
        self.requests: list[Request] = []
        self.claimed: list[tuple[Request, npt.NDArray[np.int64]]] = []
        self.flights: list[Flight] = []
        self.ended: Counter[tuple[int, int]] = Counter()

    # What comes in.

    @rule(
        texts=st.lists(TEXTS, min_size=1, max_size=6),
        priority=PRIORITIES,
        split=st.sampled_from([0, 3, 5]),
        pin=st.booleans(),
        prompt_tokens=st.sampled_from([0, 0, 1]),
        tokenized=st.booleans(),
        deadline=st.sampled_from([None, None, None, 0.5]),
    )
    def submit(
        self,
        texts: list[Ids],
        priority: Priority,
        split: int,
        pin: bool,
        prompt_tokens: int,
        tokenized: bool,
        deadline: float | None,
    ) -> None:
        request = request_of(
            texts,
            priority=priority,
            shared_tokens=split,
            is_pinned=pin,
            prompt_tokens=prompt_tokens,
            deadline_s=None if deadline is None else self.now_s + deadline,
        )
        self.requests.append(request)
        chunk = chunk_of(request, digests=self.digests) if tokenized else None
        self.scheduler.submit(request, self.now_s, chunk)

    @rule()
    def claim_some(self) -> None:
        self.claim_texts()

    def claim_texts(self) -> None:
        for priority in Priority:
            self.claimed += self.scheduler.next_to_tokenize(priority)

    @precondition(lambda self: self.claimed)
    @rule(which=WHICH)
    def tokenize_one(self, which: int) -> None:
        self.tokenized(which)

    def tokenized(self, which: int) -> None:
        request, rows = self.claimed.pop(which % len(self.claimed))
        self.scheduler.ready(request, chunk_of(request, rows, digests=self.digests), self.now_s)

    # Batches.

    @precondition(lambda self: len(self.flights) < 4)
    @rule(priorities=st.sampled_from(WORKERS_PRIORITIES), shares=st.integers(1, 3), which=WHICH)
    def plan_one(self, priorities: Sequence[Priority], shares: int, which: int) -> None:
        self.plan(priorities, shares, which)

    def plan(
        self, priorities: Sequence[Priority] = tuple(Priority), shares: int = 1, which: int = 0
    ) -> bool:
        replica = self.replicas[which % len(self.replicas)]
        batch = self.scheduler.next_batch(
            self.now_s,
            priorities=priorities,
            bulk_shares=shares,
            query_shares=shares,
            replica=replica,
        )
        if batch is None:
            return False
        assert all(segment.request.priority in priorities for segment in batch.segments)
        assert not any(segment.request.dead for segment in batch.segments)
        self.check_size(batch)
        use = self.memories[replica].launch(batch) if batch.uses_prefixes else None
        self.flights.append(Flight(batch, use, replica))
        return True

    def plan_any(self, first: int) -> bool:
        """For the first replica that there is a batch for."""
        return any(self.plan(which=first + more) for more in range(len(self.replicas)))

    def check_size(self, batch: Batch) -> None:
        """No more than the budget is computed, but for a text that has to go whole."""
        assert 0 < batch.computed_tokens <= batch.tokens
        if batch.computed_tokens > self.scheduler.max_batch_tokens:
            assert batch.texts == 1

    @precondition(lambda self: self.flights)
    @rule(which=WHICH, keep=st.sampled_from([True, True, True, False]))
    def land_one(self, which: int, keep: bool) -> None:
        self.land(which, keep)

    def land(self, which: int, keep: bool = True) -> None:
        flight = self.flights.pop(which % len(self.flights))
        if flight.is_part:
            keep = False
        if flight.use is not None:
            memory = self.memories[flight.replica]
            if not keep:
                memory.spoil(flight.use)
            memory.done(flight.use)
        self.end(flight.batch, self.scheduler.completed(flight.batch, self.now_s, keep=keep))

    def end(self, batch: Batch, duplicates: Any) -> None:
        place = 0
        for segment in batch.segments:
            for index in range(segment.start, segment.stop):
                leader = (segment.request, segment.chunk, index)
                if not segment.is_unfinished:
                    self.end_text(leader)
                for duplicate in duplicates.get(place, ()):
                    assert not segment.is_unfinished
                    self.check_in_flight_texts(leader, duplicate)
                    self.end_text(duplicate)
                place += 1

    def check_in_flight_texts(self, leader: Duplicate, duplicate: Duplicate) -> None:
        one, other = (chunk.ids_of(place).tolist() for _, chunk, place in (leader, duplicate))
        assert one == other
        assert leader[0].prompt_tokens == duplicate[0].prompt_tokens
        assert duplicate[0].priority is Priority.BULK or leader[0].priority is Priority.INTERACTIVE

    def end_text(self, text: Duplicate) -> None:
        request, chunk, place = text
        self.ended[request.id, int(chunk.rows[place])] += 1
        request.remaining -= 1

    @precondition(lambda self: self.flights)
    @rule(which=WHICH)
    def fail(self, which: int) -> None:
        flight = self.flights.pop(which % len(self.flights))
        if flight.use is not None:
            self.memories[flight.replica].spoil(flight.use)
            self.memories[flight.replica].done(flight.use)
        self.scheduler.failed(flight.batch)
        batch = flight.batch.uncached()
        assert not batch.uses_prefixes
        if batch.texts == 1:
            self.end(batch, self.scheduler.completed(batch, self.now_s, keep=False))
            return
        for half in batch.halves():
            alive = half.alive()
            self.scheduler.dropped(half.left_out(alive), self.now_s)
            if alive.segments:
                self.flights.append(Flight(alive, None, is_part=True))

    @precondition(lambda self: len(self.replicas) > 1)
    @rule(which=WHICH)
    def lose_a_replica(self, which: int) -> None:
        self.scheduler.lose_replica(self.replicas.pop(which % len(self.replicas)))

    # Ends.

    @precondition(lambda self: self.requests)
    @rule(which=WHICH)
    def forget(self, which: int) -> None:
        self.scheduler.forget(self.requests[which % len(self.requests)])

    @rule(seconds=st.sampled_from([0.01, 0.2, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        for request in self.scheduler.expired(self.now_s):
            assert request.dead

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for cache in self.scheduler.caches:
            cache.check()
        assert max(self.ended.values(), default=1) == 1
        for queue in self.scheduler.queues.values():
            assert 0 <= queue.ready_tokens <= queue.waiting_tokens

    def teardown(self) -> None:
        """Everything comes to its end in a number of steps that is bounded."""
        if not hasattr(self, "scheduler"):
            return
        for step in range(2000):
            if self.claimed:
                self.tokenized(0)
            self.claim_texts()
            if self.flights:
                self.land(0, keep=not self.gives_nan)
            elif not self.plan_any(first=step) and not self.claimed:
                break
        else:
            raise AssertionError(f"no end: {self.scheduler!r}")
        for request in self.requests:
            if not request.dead:
                assert {row for number, row in self.ended if number == request.id} == {
                    *range(len(request))
                }
        self.check_at_rest()

    def check_at_rest(self) -> None:
        scheduler = self.scheduler
        assert repr(scheduler._in_flight_texts) == "InFlightTexts(in_flight=0, following=0)"
        assert {queue.waiting_tokens for queue in scheduler.queues.values()} == {0}
        assert {queue.ready_tokens for queue in scheduler.queues.values()} == {0}
        for cache in scheduler.caches:
            cache.check(idle=True)


TestPlans = Machine.TestCase
TestPlans.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
