"""Identical texts in flight are computed once; who follows whom, and what becomes of duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenized_requests import Ids, chunk_of, request_of, scheduler_of, submit

from millpond.scheduler.batch import Batch, BatchShape
from millpond.scheduler.prefix_cache import PrefixCache
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.scheduler import Scheduler

A, B, C = (1, 2, 3), (4, 5, 6), (7, 8, 9)
SHAPES = {
    "packed": BatchShape(),
    "padded": BatchShape(8),
    "equal length": BatchShape(1),
}


@pytest.fixture(params=[*SHAPES, "with prefixes"])
def scheduler(request: pytest.FixtureRequest) -> Scheduler:
    """Of every kind of plan, with room for several texts in a batch."""
    if request.param == "with prefixes":
        return scheduler_of(budget=64, prefixes=PrefixCache(32, block_tokens=2))
    return scheduler_of(budget=64, shape=SHAPES[request.param])


def query(*texts: Ids, **options: Any) -> Request:
    return request_of(texts, priority=Priority.INTERACTIVE, **options)


def planned(scheduler: Scheduler, **options: Any) -> Batch:
    batch = scheduler.next_batch(0.0, **options)
    assert batch is not None
    return batch


def ids_in(batch: Batch) -> list[Ids]:
    return [
        tuple(segment.chunk.ids_of(place).tolist())
        for segment in batch.segments
        for place in range(segment.start, segment.stop)
    ]


def completed(scheduler: Scheduler, batch: Batch, *, keep: bool = True) -> dict[Ids, list[Request]]:
    """Who gets the vector of which text beside its own request."""
    ids = ids_in(batch)
    found = scheduler.completed(batch, 0.0, keep=keep)
    for place, duplicates in found.items():
        for _, chunk, index in duplicates:
            assert tuple(chunk.ids_of(index).tolist()) == ids[place]
    return {
        ids[place]: [request for request, *_ in duplicates] for place, duplicates in found.items()
    }


def in_flight(scheduler: Scheduler) -> str:
    return repr(scheduler._in_flight_texts)


# Who follows.


def test_identical_texts_of_a_call_are_computed_once(scheduler: Scheduler) -> None:
    request = submit(scheduler, request_of([A, B, A, A, C, B]))
    batch = planned(scheduler)
    assert sorted(ids_in(batch)) == [A, B, C]
    assert in_flight(scheduler) == "InFlightTexts(in_flight=3, following=3)"
    assert completed(scheduler, batch) == {A: [request, request], B: [request]}
    assert in_flight(scheduler) == "InFlightTexts(in_flight=0, following=0)"
    assert scheduler.next_batch(0.0) is None


def test_so_are_those_of_several_calls(scheduler: Scheduler) -> None:
    one, other = submit(scheduler, request_of([A, B])), submit(scheduler, request_of([B, C]))
    batch = planned(scheduler)
    assert sorted(ids_in(batch)) == [A, B, C]
    assert completed(scheduler, batch) == {B: [other]}
    assert one.spans == other.spans


def test_and_those_of_batches_in_flight(scheduler: Scheduler) -> None:
    submit(scheduler, request_of([A, B]))
    first = planned(scheduler)
    later = submit(scheduler, request_of([C, B]))
    second = planned(scheduler)
    assert ids_in(second) == [C]
    assert completed(scheduler, second) == {}
    assert completed(scheduler, first) == {B: [later]}


def test_once_it_is_through_a_text_is_computed_again(scheduler: Scheduler) -> None:
    for _ in range(2):
        submit(scheduler, request_of([A]))
        batch = planned(scheduler)
        assert ids_in(batch) == [A]
        assert completed(scheduler, batch) == {}


def test_duplicates_take_no_room_in_a_batch() -> None:
    scheduler = scheduler_of(budget=6)
    submit(scheduler, request_of([A] * 50 + [B]))
    assert sorted(ids_in(planned(scheduler))) == [A, B]


def test_where_all_that_is_ready_follows_there_is_no_batch(scheduler: Scheduler) -> None:
    submit(scheduler, request_of([A, B]))
    first = planned(scheduler)
    in_flight_texts = submit(scheduler, request_of([B, A, B]))
    assert scheduler.next_batch(0.0) is None
    assert not scheduler.queues[Priority.BULK].ready_requests
    assert scheduler.queues[Priority.BULK].waiting_tokens == 0
    assert completed(scheduler, first) == {
        A: [in_flight_texts],
        B: [in_flight_texts, in_flight_texts],
    }


def test_queries_do_not_follow_bulk_texts_and_bulk_texts_follow_queries(
    scheduler: Scheduler,
) -> None:
    submit(scheduler, request_of([A]))
    bulk_batch = planned(scheduler)
    asked = submit(scheduler, query(A))
    query_batch = planned(scheduler)
    assert query_batch.requests == (asked,)
    assert completed(scheduler, query_batch) == {}
    assert completed(scheduler, bulk_batch) == {}

    submit(scheduler, query(A))
    query_batch = planned(scheduler)
    duplicate = submit(scheduler, request_of([A]))
    asking_too = submit(scheduler, query(A))
    assert scheduler.next_batch(0.0) is None
    assert set(completed(scheduler, query_batch)[A]) == {duplicate, asking_too}


def test_queries_beside_an_identical_bulk_text_are_computed_once(scheduler: Scheduler) -> None:
    submit(scheduler, request_of([A]))
    bulk_batch = planned(scheduler)
    first, *others = [submit(scheduler, query(A)) for _ in range(4)]
    query_batch = planned(scheduler)
    assert (query_batch.texts, query_batch.requests) == (1, (first,))
    assert completed(scheduler, bulk_batch) == {}
    assert completed(scheduler, query_batch) == {A: others}
    assert in_flight(scheduler) == "InFlightTexts(in_flight=0, following=0)"


def test_bulk_texts_do_not_wait_behind_queries_that_follow(scheduler: Scheduler) -> None:
    submit(scheduler, query(A))
    planned(scheduler)
    submit(scheduler, query(A))
    submit(scheduler, request_of([B]))
    assert scheduler.next_batch(0.0, priorities=[Priority.INTERACTIVE]) is None
    submit(scheduler, query(A))
    assert ids_in(planned(scheduler)) == [B]


def test_texts_with_other_prompts_left_out_are_no_in_flight_texts(scheduler: Scheduler) -> None:
    submit(scheduler, request_of([A], prompt_tokens=1))
    submit(scheduler, request_of([A]))
    assert ids_in(planned(scheduler)) == [A, A]


def test_texts_of_other_routes_are_no_in_flight_texts() -> None:
    scheduler = Scheduler(
        [BatchShape(), BatchShape()],
        max_batch_tokens=64,
        max_queue_tokens=1000,
        max_query_wait_s=0.1,
    )
    submit(scheduler, request_of([A], route=0))
    submit(scheduler, request_of([A], route=1))
    assert [planned(scheduler).route for _ in range(2)] == [0, 1]


def test_texts_whose_digests_collide_are_no_in_flight_texts(scheduler: Scheduler) -> None:
    first, later = request_of([A, B, A, C]), request_of([C, A, B])
    for request in (first, later):
        scheduler.submit(request, 0.0, chunk_of(request, digests=1))
    batch = planned(scheduler)
    assert set(ids_in(batch)) == {A, B, C}
    duplicates = completed(scheduler, batch)
    assert sum(map(len, duplicates.values())) + batch.texts == 7
    assert in_flight(scheduler) == "InFlightTexts(in_flight=0, following=0)"


def test_a_text_that_collides_does_not_land_for_the_one_it_collides_with() -> None:
    scheduler = scheduler_of(budget=3)
    for request in (one := request_of([A]), request_of([B])):
        scheduler.submit(request, 0.0, chunk_of(request, digests=1))
    first, second = planned(scheduler), planned(scheduler)
    assert first.requests == (one,)
    twin = request_of([A])
    scheduler.submit(twin, 0.0, chunk_of(twin, digests=1))
    assert scheduler.next_batch(0.0) is None
    assert completed(scheduler, second) == {}
    assert completed(scheduler, first) == {A: [twin]}


def test_texts_that_differ_in_length_alone_have_digests_of_their_own() -> None:
    texts = [(0,) * length for length in range(1, 60)] + [(0, 1), (1, 0), (2, 0), (0, 2)]
    digests = chunk_of(request_of(texts)).digests
    assert len(set(digests.tolist())) == len(texts)


def test_a_digest_depends_on_the_text_alone() -> None:
    rng = np.random.default_rng(1)
    texts = [tuple(rng.integers(0, 1 << 30, 1 + n % 9).tolist()) for n in range(40)]
    together, request = chunk_of(request_of(texts)), request_of(texts)
    for place, row in enumerate(together.rows.tolist()):
        alone = chunk_of(request, np.array([row]))
        assert alone.digests[0] == together.digests[place]


# What becomes of duplicates.


def test_a_duplicate_whose_leader_dies_in_its_batch_still_gets_the_vector(
    scheduler: Scheduler,
) -> None:
    dying, alive = submit(scheduler, request_of([A])), submit(scheduler, request_of([A]))
    batch = planned(scheduler)
    assert batch.requests == (dying,)
    scheduler.forget(dying)
    assert completed(scheduler, batch) == {A: [alive]}


def test_duplicates_of_texts_that_do_not_run_again_are_computed(scheduler: Scheduler) -> None:
    """The request of the leader ended while its batch, which had failed, was split."""
    dying = submit(scheduler, request_of([A, B]))
    alive, dead_too = submit(scheduler, request_of([B])), submit(scheduler, request_of([B]))
    batch = planned(scheduler)
    scheduler.failed(batch)
    scheduler.forget(dying)
    scheduler.forget(dead_too)
    for half in batch.uncached().halves():
        scheduler.dropped(half.left_out(half.alive()), 0.0)
    again = planned(scheduler)
    assert again.requests == (alive,)
    assert ids_in(again) == [B]
    assert completed(scheduler, again) == {}
    assert scheduler.next_batch(0.0) is None


def test_of_duplicates_that_run_after_all_one_leads(scheduler: Scheduler) -> None:
    dying = submit(scheduler, request_of([A, B]))
    one, other = submit(scheduler, request_of([B])), submit(scheduler, request_of([B, B]))
    batch = planned(scheduler)
    scheduler.failed(batch)
    scheduler.forget(dying)
    scheduler.dropped(batch.uncached().segments, 0.0)
    again = planned(scheduler)
    duplicates = completed(scheduler, again)[B]
    assert again.texts == 1
    assert len(duplicates) == 2
    assert {*again.requests, *duplicates} == {one, other}


def test_bulk_that_waits_again_is_due_in_its_time(scheduler: Scheduler) -> None:
    dying = submit(scheduler, query(A))
    batch = planned(scheduler)
    waiting = submit(scheduler, request_of([A]))
    assert scheduler.next_batch(0.0) is None
    scheduler.failed(batch)
    scheduler.forget(dying)
    scheduler.dropped(batch.uncached().segments, 0.0)
    asked = submit(scheduler, query(B), 100.0)
    both = scheduler.next_batch(100.0)
    assert both is not None
    assert set(both.requests) == {waiting, asked}


def test_a_text_whose_batch_fails_still_leads_while_it_is_split(scheduler: Scheduler) -> None:
    submit(scheduler, request_of([A, B]))
    batch = planned(scheduler)
    scheduler.failed(batch)
    twin = submit(scheduler, request_of([A]))
    assert scheduler.next_batch(0.0) is None
    first, second = batch.uncached().halves()
    assert {**completed(scheduler, first), **completed(scheduler, second)} == {A: [twin]}


def test_a_text_that_is_computed_in_part_is_not_followed() -> None:
    """It may take long, and a query that is the same may not wait for it."""
    scheduler = scheduler_of(budget=4, prefixes=PrefixCache(32, block_tokens=2))
    long = (*A, *B, *C)
    submit(scheduler, request_of([long]))
    part = planned(scheduler)
    assert part.segments[0].is_unfinished
    assert in_flight(scheduler) == "InFlightTexts(in_flight=0, following=0)"
    submit(scheduler, request_of([long]))
    other = planned(scheduler)
    assert completed(scheduler, part) == completed(scheduler, other) == {}
