"""A batch is split in halves, and rid of ended requests, without losing or repeating a text."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millpond.embeddings import OutputSpec
from millpond.scheduler.batch import Batch, Segment
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.token_chunk import TokenChunk


def segment_of(
    lengths: list[int], start: int, stop: int, priority: Priority = Priority.BULK
) -> Segment:
    request = Request([""] * len(lengths), priority=priority, output=OutputSpec(dimension=1))
    ids = np.zeros(sum(lengths), dtype=np.int32)
    return Segment(
        request, TokenChunk.build(np.arange(len(lengths)), ids, np.array(lengths)), start, stop
    )


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    segments = []
    for _ in range(draw(st.integers(1, 5))):
        lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
        start = draw(st.integers(0, len(lengths) - 1))
        stop = draw(st.integers(start + 1, len(lengths)))
        segments.append(segment_of(lengths, start, stop, draw(st.sampled_from(Priority))))
    return Batch(1, tuple(segments), draw(st.sampled_from([None, 16])), 0.5)


def places(batch: Batch) -> list[tuple[int, int]]:
    """Every text of a batch, by its request and its place in the chunk."""
    return [(s.request.id, place) for s in batch.segments for place in range(s.start, s.stop)]


@given(batches())
def test_halves_hold_every_text_once_and_in_order(batch: Batch) -> None:
    if batch.texts < 2:
        return
    first, second = batch.halves()
    assert places(first) + places(second) == places(batch)
    assert first.texts == batch.texts // 2
    assert second.texts == batch.texts - first.texts
    assert first.tokens + second.tokens == batch.tokens
    for half in (first, second):
        assert all(segment.texts for segment in half.segments)
        assert (half.route, half.padded_length, half.queue_s) == (1, batch.padded_length, 0.5)


@given(batches())
def test_halving_again_and_again_ends_at_each_text_alone(batch: Batch) -> None:
    waiting, alone = [batch], []
    while waiting:
        part = waiting.pop(0)
        if part.texts == 1:
            alone.extend(places(part))
        else:
            waiting.extend(part.halves())
    assert sorted(alone) == sorted(places(batch))


@given(batches(), st.data())
def test_only_texts_of_requests_that_go_on_stay_alive(batch: Batch, data: st.DataObject) -> None:
    for request in batch.requests:
        request.dead = data.draw(st.booleans())
    alive = batch.alive()
    assert places(alive) == [
        place
        for segment in batch.segments
        if not segment.request.dead
        for place in places(Batch(1, (segment,)))
    ]


def test_a_batch_counts_its_texts_tokens_requests_and_priorities() -> None:
    one = segment_of([5, 3, 2], 0, 2)
    other = segment_of([4], 0, 1, Priority.INTERACTIVE)
    batch = Batch(0, (one, other, one._replace(start=2, stop=3)))
    assert (batch.texts, batch.tokens) == (4, 14)
    assert batch.requests == (one.request, other.request)
    assert batch.texts_at(Priority.BULK) == 3
    assert batch.texts_at(Priority.INTERACTIVE) == 1
    assert repr(batch) == "Batch(texts=4, tokens=14, route=0, padded_length=None, requests=2)"
