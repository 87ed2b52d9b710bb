"""The scheduler: whatever comes in goes out once, in batches the runner can take, in fair order."""

from __future__ import annotations

import itertools
import weakref

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from millpond.embeddings import OutputSpec
from millpond.scheduler.batch import Batch, BatchShape
from millpond.scheduler.feedback import FIRST_SHORT_BATCH_TOKENS, SPEED_MEMORY
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.scheduler import (
    MIN_SHARE_TOKENS,
    QUERY_MEMORY_S,
    STARVATION_LIMIT,
    TOKENIZE_AHEAD_BATCHES,
    Scheduler,
)
from millpond.scheduler.token_chunk import TokenChunk

OUTPUT = OutputSpec(dimension=1)
PACKED = BatchShape()
WAIT_S = 0.03
Rows = npt.NDArray[np.int64]


def request_of(
    *lengths: int,
    priority: Priority = Priority.BULK,
    route: int = 0,
    deadline_s: float | None = None,
) -> Request:
    texts = [np.zeros(length, dtype=np.int32) for length in lengths]
    return Request(
        texts, priority=priority, output=OUTPUT, route=route, tokenized=True, deadline_s=deadline_s
    )


def query_of(*lengths: int, **options: float) -> Request:
    return request_of(*lengths, priority=Priority.INTERACTIVE, **options)  # type: ignore[arg-type]


def other_ids(count: int) -> npt.NDArray[np.int32]:
    """Ids that no other text has."""
    first = next(_thousands)
    return np.arange(first, first + count, dtype=np.int32)


def chunk_of(
    request: Request, lengths: npt.NDArray[np.int64], rows: Rows | None = None
) -> TokenChunk:
    taken = np.arange(len(request)) if rows is None else rows
    return TokenChunk.build(taken, other_ids(int(lengths.sum())), lengths)


_thousands = itertools.count(0, 5000)


def scheduler_of(
    *shapes: BatchShape,
    max_batch_tokens: int = 100,
    max_queue_tokens: int = 100_000,
    min_short_batch_tokens: int = 1,
) -> Scheduler:
    return Scheduler(
        shapes or (PACKED,),
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
        max_query_wait_s=WAIT_S,
        min_short_batch_tokens=min_short_batch_tokens,
    )


def submit_ready(scheduler: Scheduler, request: Request, now_s: float = 0.0) -> Request:
    scheduler.submit(
        request, now_s, chunk_of(request, np.array([len(text) for text in request.texts]))
    )
    return request


def tokenize_all(scheduler: Scheduler, now_s: float = 0.0) -> None:
    for priority in Priority:
        while claims := scheduler.next_to_tokenize(priority):
            for request, rows in claims:
                lengths = np.array([len(request.texts[row]) for row in rows])
                scheduler.ready(request, chunk_of(request, lengths, rows), now_s)


def finish(batch: Batch) -> None:
    for segment in batch.segments:
        segment.request.remaining -= segment.texts


def by_request(batch: Batch | None) -> dict[Request, int]:
    """Texts of each request."""
    counts: dict[Request, int] = {}
    for segment in () if batch is None else batch.segments:
        counts[segment.request] = counts.get(segment.request, 0) + segment.texts
    return counts


class Machine(RuleBasedStateMachine):
    """Anything may happen in any order; the books are kept a second time and compared.

    `actual[request]` are the lengths its texts turn out to have, `delivered` and `taken` the rows
    that are tokenised and in a batch.
    """

    submitted = Bundle("submitted")
    claims = Bundle("claims")

    @initialize(
        shapes=st.sampled_from(
            [
                (PACKED,),
                (PACKED, PACKED),
                (BatchShape(1),),
                (BatchShape(8), BatchShape(8, 12)),
                (PACKED, BatchShape(16)),
            ]
        ),
        batch_tokens=st.integers(1, 60),
        queue_tokens=st.sampled_from([1, 30, 100, 100_000]),
    )
    def start(self, shapes: tuple[BatchShape, ...], batch_tokens: int, queue_tokens: int) -> None:
        self.scheduler = scheduler_of(
            *shapes, max_batch_tokens=batch_tokens, max_queue_tokens=queue_tokens
        )
        self.now_s = 100.0
        self.requests: list[Request] = []
        self.actual: dict[Request, npt.NDArray[np.int64]] = {}
        self.delivered: dict[Request, set[int]] = {}
        self.taken: dict[Request, set[int]] = {}
        self.adopted: set[Request] = set()

    @rule(
        target=submitted,
        priority=st.sampled_from(Priority),
        texts=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 30)), min_size=1, max_size=8),
        route=st.integers(0, 1),
        timeout_s=st.none() | st.floats(0.01, 1.0),
        tokenized=st.booleans(),
    )
    def submit(
        self,
        priority: Priority,
        texts: list[tuple[int, int]],
        route: int,
        timeout_s: float | None,
        tokenized: bool,
    ) -> Request:
        route %= len(self.scheduler.shapes)
        request = Request(
            ["x" * characters for characters, _ in texts],
            priority=priority,
            output=OUTPUT,
            route=route,
            deadline_s=None if timeout_s is None else self.now_s + timeout_s,
        )
        limit = self.scheduler.shapes[route].max_length or 30
        self.actual[request] = np.array([min(tokens, limit) for _, tokens in texts])
        self.delivered[request], self.taken[request] = set(), set()
        waiting = self.scheduler.queues[priority].waiting_tokens
        chunk = chunk_of(request, self.actual[request]) if tokenized else None
        if tokenized:
            self.adopted.add(request)
            self.delivered[request] = set(range(len(request)))
        room = self.scheduler.queues[request.priority].has_room_for(request)
        self.scheduler.submit(request, self.now_s, chunk)
        self.requests.append(request)
        if not tokenized:
            assert request.admitted is room
        if request.admitted:
            added = self.expected_waiting(request)
            assert waiting == 0 or waiting + added <= self.scheduler.queues[priority].max_tokens
        return request

    @rule(target=claims, priority=st.sampled_from(Priority))
    def claim(self, priority: Priority) -> object:
        claims = self.scheduler.next_to_tokenize(priority)
        for request, rows in claims:
            assert request.priority is priority
            assert not request.dead
            assert request.admitted
            assert len(rows)
        return multiple(*claims)

    @rule(claim=consumes(claims))
    def deliver(self, claim: tuple[Request, Rows]) -> None:
        request, rows = claim
        if not request.dead:
            assert self.delivered[request].isdisjoint(rows.tolist())
            self.delivered[request].update(rows.tolist())
        chunk = chunk_of(request, self.actual[request][rows], rows)
        self.scheduler.ready(request, chunk, self.now_s)

    @rule()
    def plan(self) -> None:
        ready = [
            request
            for request in self.requests
            if not request.dead and request.admitted and self.ready_rows(request)
        ]
        batch = self.scheduler.next_batch(self.now_s)
        assert (batch is not None) == bool(ready)
        if batch is not None:
            self.check(batch)
            finish(batch)

    def check(self, batch: Batch) -> None:
        shape = self.scheduler.shapes[batch.route]
        cost = batch.tokens
        if shape.pad_to is not None:
            assert batch.padded_length is not None
            cost = batch.padded_length * batch.texts
        else:
            assert batch.padded_length is None
        assert cost <= self.scheduler.max_batch_tokens or batch.texts == 1
        assert batch.texts
        for segment in batch.segments:
            request = segment.request
            assert segment.texts
            assert not request.dead, "a text of an ended request"
            assert request.admitted
            assert request.route == batch.route
            assert (np.diff(segment.chunk.lengths[segment.start : segment.stop]) <= 0).all()
            for row in segment.chunk.rows[segment.start : segment.stop].tolist():
                assert row in self.delivered[request]
                assert row not in self.taken[request], "the same text twice"
                self.taken[request].add(row)
                padded = shape.padded_length(int(self.actual[request][row]))
                assert padded == batch.padded_length

    @rule(request=submitted)
    def forget(self, request: Request) -> None:
        self.scheduler.forget(request)
        assert request.dead

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.2, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        due = {
            request
            for request in self.requests
            if request.deadline_s is not None
            and request.deadline_s <= self.now_s
            and not request.dead
            and request.remaining
        }
        expired = self.scheduler.expired(self.now_s)
        assert set(expired) == due
        assert len(expired) == len(due), "each is named once"
        assert all(request.dead for request in due)
        assert self.scheduler.expired(self.now_s) == []

    @rule(tokens=st.integers(1, 60))
    def shrink(self, tokens: int) -> None:
        before = self.scheduler.max_batch_tokens
        self.scheduler.shrink(tokens)
        assert self.scheduler.max_batch_tokens == min(before, tokens)

    def ready_rows(self, request: Request) -> set[int]:
        return self.delivered[request] - self.taken[request]

    def expected_waiting(self, request: Request) -> int:
        actual = self.actual[request]
        ready = sum(int(actual[row]) for row in self.ready_rows(request))
        unknown = set(range(len(request))) - self.delivered[request]
        return ready + sum(int(request.size_guesses[row]) for row in unknown)

    @invariant()
    @precondition(lambda self: hasattr(self, "scheduler"))
    def the_books_agree(self) -> None:
        for priority, queue in self.scheduler.queues.items():
            alive = [
                request
                for request in self.requests
                if request.priority is priority and not request.dead
            ]
            admitted = [request for request in alive if request.admitted]
            assert queue.waiting_tokens == sum(map(self.expected_waiting, admitted))
            assert queue.ready_tokens == sum(
                int(self.actual[request][row])
                for request in admitted
                for row in self.ready_rows(request)
            )
            # First come, first let in.
            assert admitted == alive[: len(admitted)]

    @invariant()
    @precondition(lambda self: hasattr(self, "scheduler"))
    def the_next_deadline_is_the_earliest(self) -> None:
        deadlines = [
            request.deadline_s
            for request in self.requests
            if request.deadline_s is not None and not request.dead and request.remaining
        ]
        assert self.scheduler.next_deadline() == min(deadlines, default=None)

    def teardown(self) -> None:
        """Everyone who is left gets through: nothing is lost and nobody waits in the room."""
        if not hasattr(self, "scheduler"):
            return
        for request in self.requests:
            rows = self.claimed_rows(request) - self.delivered[request]
            if rows and not request.dead:  # its claimed texts are on their way: deliver them
                self.deliver((request, np.array(sorted(rows))))
        for _ in range(2000):
            claims = [one for each in Priority for one in self.scheduler.next_to_tokenize(each)]
            for claim in claims:
                self.deliver(claim)
            batch = self.scheduler.next_batch(self.now_s)
            if batch is not None:
                self.check(batch)
                finish(batch)
            elif not claims:
                break
        for request in self.requests:
            if not request.dead:
                assert self.taken[request] == set(range(len(request))), request
                assert request.remaining == 0
        for queue in self.scheduler.queues.values():
            assert (queue.waiting_tokens, queue.ready_tokens) == (0, 0)

    def claimed_rows(self, request: Request) -> set[int]:
        if request in self.adopted:
            return set(range(len(request)))
        return set(request.order[: request.cursor].tolist())


Machine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMachine = Machine.TestCase


# Who goes first.


def test_queries_go_first() -> None:
    scheduler = scheduler_of()
    bulk = submit_ready(scheduler, request_of(*[10] * 30))
    query = submit_ready(scheduler, query_of(5))
    assert by_request(scheduler.next_batch(0.0)) == {query: 1}
    assert set(by_request(scheduler.next_batch(0.0))) == {bulk}


def test_a_query_that_comes_during_a_bulk_batch_is_in_the_next_one() -> None:
    scheduler = scheduler_of()
    bulk = submit_ready(scheduler, request_of(*[10] * 30))
    assert bulk in by_request(scheduler.next_batch(0.0))
    query = submit_ready(scheduler, query_of(5), 0.01)
    assert query in by_request(scheduler.next_batch(0.02))


@pytest.mark.parametrize("route", [0, 1])
def test_bulk_is_never_kept_waiting_longer_than_its_patience(route: int) -> None:
    scheduler = scheduler_of(PACKED, PACKED)
    bulk = submit_ready(scheduler, request_of(*[10] * 400, route=route))
    step_s, now_s, last_s, waits = 0.01, 0.0, 0.0, []
    for _ in range(200):
        submit_ready(scheduler, query_of(*[10] * 12), now_s)  # more than a batch can hold
        batch = scheduler.next_batch(now_s)
        if bulk in by_request(batch):
            waits.append(now_s - last_s)
            last_s = now_s
        now_s += step_s
    assert len(waits) > 10, "ingestion goes on"
    assert max(waits) <= STARVATION_LIMIT * WAIT_S + 2 * step_s
    assert min(waits[1:]) >= STARVATION_LIMIT * WAIT_S - 2 * step_s, "queries had the other batches"


def test_bulk_that_is_due_takes_queries_along() -> None:
    scheduler = scheduler_of(max_batch_tokens=400)
    bulk = submit_ready(scheduler, request_of(*[10] * 100))
    due_s = STARVATION_LIMIT * WAIT_S
    query = submit_ready(scheduler, query_of(5), due_s)
    batch = scheduler.next_batch(due_s)
    assert by_request(batch) == {bulk: FIRST_SHORT_BATCH_TOKENS // 10, query: 1}
    assert batch is not None
    assert batch.queue_s == due_s


def test_a_query_does_not_wait_twice_in_a_row_for_bulk_that_is_due() -> None:
    scheduler = scheduler_of(PACKED, PACKED)
    submit_ready(scheduler, request_of(*[10] * 100, route=1))
    due_s = STARVATION_LIMIT * WAIT_S
    query = submit_ready(scheduler, query_of(5), due_s)  # of another route: it cannot come along
    assert query not in by_request(scheduler.next_batch(due_s))
    assert query in by_request(scheduler.next_batch(due_s + 0.01))


def test_bulk_that_went_away_leaves_no_impatience_behind() -> None:
    scheduler = scheduler_of()
    gone = submit_ready(scheduler, request_of(*[10] * 30), 0.0)
    scheduler.forget(gone)
    bulk = submit_ready(scheduler, request_of(*[10] * 30), 10.0)
    query = submit_ready(scheduler, query_of(5), 10.0)
    assert by_request(scheduler.next_batch(10.0)) == {query: 1}
    assert bulk in by_request(scheduler.next_batch(10.0))


# How large a bulk batch is.


def tokens(batch: Batch | None) -> int:
    assert batch is not None
    return batch.tokens


def test_without_queries_a_bulk_batch_is_as_large_as_the_runner_allows() -> None:
    scheduler = scheduler_of(max_batch_tokens=1000)
    submit_ready(scheduler, request_of(*[1] * 5000))
    assert tokens(scheduler.next_batch(0.0)) == 1000


def test_while_queries_come_in_a_bulk_batch_takes_half_of_the_longest_query_wait() -> None:
    scheduler = scheduler_of(max_batch_tokens=10_000)
    submit_ready(scheduler, request_of(*[1] * 50_000))
    submit_ready(scheduler, query_of(5), 0.0)
    scheduler.next_batch(0.0)
    first = scheduler.next_batch(0.0)
    assert tokens(first) == FIRST_SHORT_BATCH_TOKENS, "a guess while no speed is known"
    assert first is not None
    scheduler.record(first, FIRST_SHORT_BATCH_TOKENS / 40_000)  # 40,000 tokens a second
    assert tokens(scheduler.next_batch(0.1)) == 40_000 * WAIT_S / 2
    assert tokens(scheduler.next_batch(QUERY_MEMORY_S + 1)) == 10_000, "the queries are over"


def test_the_speed_is_learnt_from_bulk_batches_and_smoothed() -> None:
    scheduler = scheduler_of(max_batch_tokens=100_000)
    submit_ready(scheduler, request_of(*[1] * 90_000))
    query = submit_ready(scheduler, query_of(5), 0.0)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    assert query in by_request(batch)
    scheduler.record(batch, 1.0)  # says nothing about bulk
    ran, seconds = 0.0, 0.0
    for tokens_per_s in (100_000, 200_000):
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        scheduler.record(batch, batch.tokens / tokens_per_s)
        scheduler.record(batch, 0.0)  # a clock too coarse says nothing either
        ran = SPEED_MEMORY * ran + batch.tokens
        seconds = SPEED_MEMORY * seconds + batch.tokens / tokens_per_s
    assert tokens(scheduler.next_batch(0.0)) == pytest.approx(ran / seconds * WAIT_S / 2, abs=1)


def test_a_batch_that_seems_to_take_no_time_makes_none_seem_quicker_than_two_are() -> None:
    """With two under way, the first may be seen to be through only when the second is, too."""
    scheduler = scheduler_of(max_batch_tokens=100_000)
    submit_ready(scheduler, request_of(*[1] * 90_000))
    submit_ready(scheduler, query_of(5), 0.0)
    scheduler.next_batch(0.0)
    for _ in range(10):
        for share in (1.99, 0.01):  # 100,000 tokens a second, both together
            batch = scheduler.next_batch(0.0)
            assert batch is not None
            scheduler.record(batch, share * batch.tokens / 100_000)
    assert tokens(scheduler.next_batch(0.0)) == pytest.approx(100_000 * WAIT_S / 2, rel=0.15)


def test_a_slow_model_still_gets_a_text_a_batch() -> None:
    scheduler = scheduler_of()
    submit_ready(scheduler, request_of(*[10] * 30))
    submit_ready(scheduler, query_of(5))
    scheduler.next_batch(0.0)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    scheduler.record(batch, 1e6)
    assert tokens(scheduler.next_batch(0.0)) == 10


def test_after_running_out_of_memory_batches_grow_back_by_and_by() -> None:
    scheduler = scheduler_of(max_batch_tokens=100)
    submit_ready(scheduler, request_of(*[1] * 5000))
    scheduler.shrink(40)
    sizes = []
    for _ in range(60):
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        sizes.append(batch.tokens)
        scheduler.record(batch, 1.0)
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (40, 100)
    assert max(later / earlier for earlier, later in itertools.pairwise(sizes)) < 1.05


def test_after_running_out_of_memory_batches_are_smaller() -> None:
    scheduler = scheduler_of(max_batch_tokens=100)
    submit_ready(scheduler, request_of(*[1] * 500))
    scheduler.shrink(40)
    assert tokens(scheduler.next_batch(0.0)) == 40
    scheduler.shrink(70)
    assert tokens(scheduler.next_batch(0.0)) == 40
    scheduler.shrink(0)
    assert tokens(scheduler.next_batch(0.0)) == 1


# Tokenising ahead.


def test_bulk_is_tokenised_a_few_batches_ahead_and_no_more() -> None:
    scheduler = scheduler_of(max_batch_tokens=10)
    request = request_of(*[1] * 1000)
    scheduler.submit(request, 0.0)
    tokenize_all(scheduler)
    ahead = 10 * TOKENIZE_AHEAD_BATCHES
    assert ahead <= scheduler.queues[Priority.BULK].ready_tokens < 2 * ahead
    assert not scheduler.next_to_tokenize(Priority.BULK)
    for _ in range(2 * TOKENIZE_AHEAD_BATCHES):
        scheduler.next_batch(0.0)
    assert scheduler.next_to_tokenize(Priority.BULK)


def test_small_requests_are_tokenised_together() -> None:
    scheduler = scheduler_of()
    bulk, queries = request_of(*[1] * 1000), [query_of(3), query_of(2, 2)]
    for request in (bulk, *queries):
        scheduler.submit(request, 0.0)
    claims = scheduler.next_to_tokenize(Priority.INTERACTIVE)
    assert [request for request, _ in claims] == queries
    assert [rows.tolist() for _, rows in claims] == [[0], [0, 1]]
    assert scheduler.to_tokenize() == [Priority.BULK]


# Deadlines and ends.


def test_an_expired_request_is_in_no_later_batch() -> None:
    scheduler = scheduler_of(max_batch_tokens=10)
    request = submit_ready(scheduler, request_of(*[10] * 5, deadline_s=1.0))
    assert by_request(scheduler.next_batch(0.5)) == {request: 1}
    assert scheduler.expired(0.999) == []
    assert scheduler.expired(1.0) == [request]
    assert scheduler.next_batch(1.0) is None
    assert scheduler.queues[Priority.BULK].waiting_tokens == 0


def test_texts_tokenised_after_their_request_ended_are_dropped() -> None:
    scheduler = scheduler_of()
    request = request_of(5, 5)
    scheduler.submit(request, 0.0)
    assert scheduler.next_to_tokenize(Priority.BULK)
    scheduler.forget(request)
    scheduler.ready(request, chunk_of(request, np.array([5, 5])), 0.0)
    assert scheduler.next_batch(0.0) is None
    assert scheduler.queues[Priority.BULK].waiting_tokens == 0


def test_a_finished_request_is_not_kept_until_its_deadline() -> None:
    scheduler = scheduler_of()
    for _ in range(50):
        submit_ready(scheduler, request_of(5, deadline_s=3600.0))
        scheduler.expired(0.0)  # as before every batch
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        finish(batch)
    assert len(scheduler._deadlines) <= 2


def test_finished_requests_are_not_kept_behind_one_with_an_earlier_deadline() -> None:
    scheduler = scheduler_of()
    waiting = request_of(5, deadline_s=600.0)
    scheduler.submit(waiting, 0.0)
    kept = []
    for _ in range(500):
        request = submit_ready(scheduler, request_of(5, deadline_s=601.0))
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        finish(batch)
        scheduler.completed(batch, 0.0, keep=True)
        kept.append(weakref.ref(request))
        del request, batch
    assert not any(ref() for ref in kept)
    assert len(scheduler._deadlines) <= 2 * 64
    assert scheduler.next_deadline() == 600.0
    assert scheduler.expired(600.0) == [waiting]


def test_a_request_that_finished_in_time_does_not_expire() -> None:
    scheduler = scheduler_of()
    submit_ready(scheduler, request_of(5, deadline_s=1.0))
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    finish(batch)
    assert scheduler.expired(2.0) == []
    assert scheduler.next_deadline() is None


def test_room_that_an_ended_request_leaves_is_used_at_once() -> None:
    scheduler = scheduler_of(max_queue_tokens=10)
    first, second = submit_ready(scheduler, request_of(10)), submit_ready(scheduler, request_of(10))
    assert not second.admitted
    scheduler.forget(first)
    assert second.admitted
    scheduler.forget(first)  # a second time does nothing
    assert scheduler.queues[Priority.BULK].waiting_tokens == 10


def test_the_queues_are_bounded_apart() -> None:
    scheduler = scheduler_of(max_queue_tokens=10)
    submit_ready(scheduler, request_of(10))
    assert not scheduler.queues[Priority.BULK].has_room_for(request_of(1))
    assert scheduler.queues[Priority.INTERACTIVE].has_room_for(query_of(1))


def test_a_scheduler_says_what_waits() -> None:
    scheduler = scheduler_of()
    submit_ready(scheduler, query_of(4))
    assert repr(scheduler).startswith(
        "Scheduler(max_batch_tokens=100, interactive=RequestQueue(waiting_tokens=4, ready_tokens=4"
    )


def test_free_workers_divide_what_waits() -> None:
    scheduler = scheduler_of(max_batch_tokens=1000)
    submit_ready(scheduler, request_of(*[50] * 12))
    sizes = []
    for shares in (3, 2, 1):
        batch = scheduler.next_batch(0.0, bulk_shares=shares)
        assert batch is not None
        sizes.append(batch.texts)
    assert sizes == [4, 4, 4]


@pytest.mark.parametrize(
    ("min_short_batch_tokens", "texts"), [(1, MIN_SHARE_TOKENS // 10), (200, 20), (4096, 30)]
)
def test_what_is_too_little_is_not_divided(min_short_batch_tokens: int, texts: int) -> None:
    scheduler = scheduler_of(max_batch_tokens=1000, min_short_batch_tokens=min_short_batch_tokens)
    submit_ready(scheduler, query_of(*[10] * 30))
    batch = scheduler.next_batch(0.0, query_shares=30)
    assert batch is not None
    assert batch.texts == texts


def test_a_worker_for_queries_takes_nothing_else() -> None:
    scheduler = scheduler_of()
    bulk = submit_ready(scheduler, request_of(10))
    long_after_s = 1e6  # bulk is more than due
    assert scheduler.next_batch(long_after_s, priorities=[Priority.INTERACTIVE]) is None
    query = submit_ready(scheduler, query_of(5), long_after_s)
    assert by_request(scheduler.next_batch(long_after_s, priorities=[Priority.INTERACTIVE])) == {
        query: 1
    }
    assert by_request(scheduler.next_batch(long_after_s)) == {bulk: 1}


def test_bulk_batches_stay_long_where_queries_have_a_worker() -> None:
    scheduler = Scheduler(
        (PACKED,),
        max_batch_tokens=1000,
        max_queue_tokens=10_000,
        max_query_wait_s=WAIT_S,
        query_workers=1,
    )
    submit_ready(scheduler, query_of(5))
    scheduler.next_batch(0.0)
    submit_ready(scheduler, request_of(*[100] * 20))
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    assert batch.tokens == 1000
