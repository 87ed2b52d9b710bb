"""One priority: who is let in and when, whose turn it is, and what fits into a batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.embeddings import OutputSpec
from millpond.scheduler.batch import BatchShape
from millpond.scheduler.batch_builder import BatchBuilder
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.request_queue import RequestQueue
from millpond.scheduler.token_chunk import TokenChunk

PACKED = BatchShape()


def request_of(*lengths: int, route: int = 0) -> Request:
    firsts = itertools.islice(_thousands, len(lengths))  # no two texts are alike
    texts = [np.arange(a, a + n, dtype=np.int32) for a, n in zip(firsts, lengths, strict=True)]
    return Request(
        texts, priority=Priority.BULK, output=OutputSpec(dimension=1), route=route, tokenized=True
    )


_thousands = itertools.count(0, 5000)


def chunk_of(request: Request, rows: Sequence[int] | None = None) -> TokenChunk:
    taken = np.arange(len(request)) if rows is None else np.asarray(rows)
    ids = [request.texts[row] for row in taken]
    return TokenChunk.build(taken, np.concatenate(ids), np.array([len(one) for one in ids]))


def ready_queue(*requests: Request, max_tokens: int = 1000) -> RequestQueue:
    queue = RequestQueue(max_tokens)
    for request in requests:
        request.adopt(chunk_of(request), 0.0)
        queue.enter(request)
    return queue


def fill(queue: RequestQueue, tokens: int, *shapes: BatchShape) -> BatchBuilder:
    plan = BatchBuilder(shapes or (PACKED,), tokens, now_s=1.0)
    queue.fill(plan)
    return plan


def taken(plan: BatchBuilder) -> list[tuple[int, list[int]]]:
    """Request and lengths of each segment."""
    return [
        (segment.request.id, segment.chunk.lengths[segment.start : segment.stop].tolist())
        for segment in plan.segments
    ]


# The padded length of a text.


@given(st.integers(0, 100), st.sampled_from([1, 8, 16]), st.sampled_from([None, 20, 64]))
def test_the_padded_length_is_the_next_multiple_within_the_models_limit(
    length: int, pad_to: int, max_length: int | None
) -> None:
    padded = BatchShape(pad_to, max_length).padded_length(length)
    assert padded is not None
    assert padded >= length
    if max_length is None or padded < max_length:
        assert padded % pad_to == 0
        assert padded - length < pad_to
    elif length <= max_length:
        assert padded == max_length


def test_a_packed_text_has_no_padded_length() -> None:
    assert PACKED.padded_length(7) is None


# Requests that are not admitted yet.


def test_a_request_is_let_in_while_there_is_room_and_in_order_of_arrival() -> None:
    queue = RequestQueue(10)
    first, large, small = request_of(6), request_of(5), request_of(1)
    for request in (first, large, small):
        queue.enter(request)
    assert (first.admitted, large.admitted, small.admitted) == (True, False, False)
    assert not queue.has_room_for(request_of(1)), "the small request may not overtake the large one"
    assert queue.waiting_tokens == 6

    queue.forget(first)
    assert queue.admit()
    assert (large.admitted, small.admitted) == (True, True)
    assert queue.waiting_tokens == 6


def test_a_request_larger_than_the_bound_goes_in_alone() -> None:
    queue = RequestQueue(10)
    small, large = request_of(1), request_of(50, 50)
    queue.enter(small)
    queue.enter(large)
    assert not large.admitted
    queue.forget(small)
    queue.admit()
    assert large.admitted
    assert queue.waiting_tokens == 100
    assert not queue.has_room_for(request_of(1))


def test_a_request_that_ends_unadmitted_leaves_the_queue() -> None:
    queue = RequestQueue(10)
    first, second, third = request_of(10), request_of(10), request_of(10)
    for request in (first, second, third):
        queue.enter(request)
    queue.forget(second)
    queue.forget(first)
    queue.admit()
    assert not second.admitted
    assert third.admitted
    assert (queue.waiting_tokens, queue.ready_tokens) == (10, 0)


# Tokenising.


def test_requests_take_turns_at_being_tokenised() -> None:
    queue = RequestQueue(1000)
    long, short = request_of(5, 5, 5, 5), request_of(3)
    queue.enter(long)
    queue.enter(short)
    claims = []
    while (claim := queue.next_to_tokenize(10)) is not None:
        claims.append((claim[0].id, len(claim[1])))
    assert claims == [(long.id, 2), (short.id, 1), (long.id, 2)]


def test_a_guess_is_put_right_when_the_text_is_tokenised() -> None:
    queue = RequestQueue(1000)
    request = Request(["x" * 400], priority=Priority.BULK, output=OutputSpec(dimension=1))
    queue.enter(request)
    assert queue.waiting_tokens == 102
    assert queue.next_to_tokenize(10) is not None
    queue.ready(request, TokenChunk.build(np.arange(1), np.zeros(7, np.int32), np.array([7])), 0.0)
    assert (queue.waiting_tokens, queue.ready_tokens, request.waiting_tokens) == (7, 7, 7)


# Batches.


def test_a_batch_takes_the_longest_texts_that_fit() -> None:
    queue = ready_queue(request := request_of(2, 5, 3, 1))
    assert taken(fill(queue, 9)) == [(request.id, [5, 3])]
    assert taken(fill(queue, 9)) == [(request.id, [2, 1])]
    assert (queue.waiting_tokens, queue.ready_tokens) == (0, 0)
    assert not queue.ready_requests


def test_a_text_larger_than_the_budget_runs_alone() -> None:
    queue = ready_queue(request := request_of(50, 2))
    assert taken(fill(queue, 10)) == [(request.id, [50])]
    assert taken(fill(queue, 10)) == [(request.id, [2])]


def test_texts_without_tokens_run_too() -> None:
    queue = ready_queue(request := request_of(0, 0, 0))
    assert taken(fill(queue, 10)) == [(request.id, [0])]  # for all three: they are alike
    assert not queue.ready_requests


def test_requests_take_turns_in_batches() -> None:
    large, small = request_of(*[5] * 6), request_of(5)
    queue = ready_queue(large, small)
    assert taken(fill(queue, 10)) == [(large.id, [5, 5])]
    assert taken(fill(queue, 10)) == [(small.id, [5]), (large.id, [5])]
    assert taken(fill(queue, 10)) == [(large.id, [5, 5])]


def test_a_request_that_did_not_fit_goes_first_next_time() -> None:
    first, wide, narrow, late = request_of(6, 6), request_of(8), request_of(4, 4), request_of(8)
    queue = ready_queue(first, wide, narrow, late)
    assert taken(fill(queue, 10)) == [(first.id, [6]), (narrow.id, [4])]
    assert taken(fill(queue, 10))[0] == (wide.id, [8])


def test_a_batch_holds_one_route() -> None:
    one, other, again = request_of(3, route=0), request_of(3, route=1), request_of(3, route=0)
    queue = ready_queue(one, other, again)
    plan = fill(queue, 100, PACKED, PACKED)
    assert taken(plan) == [(one.id, [3]), (again.id, [3])]
    assert plan.route == 0
    assert taken(fill(queue, 100, PACKED, PACKED)) == [(other.id, [3])]


def test_a_padded_batch_holds_texts_of_one_padded_length_and_counts_padding() -> None:
    queue = ready_queue(request := request_of(16, 12, 9, 8, 7, 1))
    shape = BatchShape(8)
    plan = fill(queue, 32, shape)
    assert (taken(plan), plan.padded_length) == ([(request.id, [16, 12])], 16)
    plan = fill(queue, 32, shape)
    assert (taken(plan), plan.padded_length) == ([(request.id, [9])], 16)
    plan = fill(queue, 32, shape)
    assert (taken(plan), plan.padded_length) == ([(request.id, [8, 7, 1])], 8)


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=6),
    st.integers(1, 60),
    st.sampled_from([PACKED, BatchShape(1), BatchShape(8), BatchShape(8, 20), BatchShape(16, 40)]),
)
def test_every_text_comes_out_once_and_no_batch_is_over_budget(
    requests: list[list[int]], budget: int, shape: BatchShape
) -> None:
    longest = shape.max_length or 40  # no tokenizer gives more
    requests = [[min(length, longest) for length in lengths] for lengths in requests]
    made = [request_of(*lengths) for lengths in requests]
    queue = ready_queue(*made, max_tokens=100_000)
    out: dict[int, list[int]] = {request.id: [] for request in made}
    while queue.ready_requests:
        plan = fill(queue, budget, shape)
        lengths = [length for _, part in taken(plan) for length in part]
        assert lengths, "there is something ready, so something must come"
        padded = {shape.padded_length(length) for length in lengths}
        cost = sum(lengths)
        if shape.pad_to is not None:
            assert padded == {plan.padded_length}
            cost = len(lengths) * (plan.padded_length or 0)
        assert cost <= budget or len(lengths) == 1
        for request_id, part in taken(plan):
            out[request_id].extend(part)
    for request, lengths in zip(made, requests, strict=True):
        assert out[request.id] == sorted(lengths, reverse=True), (
            "each request's texts, longest first"
        )
    assert (queue.waiting_tokens, queue.ready_tokens) == (0, 0)


@pytest.mark.parametrize("admitted", [True, False])
def test_a_request_that_ended_is_never_planned(admitted: bool) -> None:
    blocker, request, last = request_of(10 if not admitted else 1), request_of(2, 2), request_of(3)
    queue = ready_queue(blocker, request, max_tokens=10)
    assert request.admitted is admitted
    queue.forget(request)
    queue.admit()
    queue.enter(last)
    assert request.id not in [request_id for request_id, _ in taken(fill(queue, 100))]
    assert queue.ready_tokens == 0
    assert request.dead
    assert not request.spans


def test_a_queue_says_how_much_waits() -> None:
    queue = ready_queue(request_of(4), request_of(4), max_tokens=5)
    assert repr(queue) == (
        "RequestQueue(waiting_tokens=4, ready_tokens=4, unadmitted=1, untokenized=0, ready=1)"
    )
