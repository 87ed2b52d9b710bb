"""A batch as arrays and back: nothing that a runner reads is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.embeddings import OutputSpec
from millpond.outputs import RaggedRows
from millpond.runner.input_batch import InputBatch, PrefixInputBatch
from millpond.runner.remote.batch_codec import arrays_of, batch_of, row_arrays, rows_of
from millpond.scheduler.batch import Batch, Segment
from millpond.scheduler.prefix_cache import PrefixCache
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.token_chunk import TokenChunk


def chunk_of(texts: list[list[int]]) -> TokenChunk:
    ids = np.concatenate([np.array(text, dtype=np.int32) for text in texts])
    return TokenChunk.build(np.arange(len(texts)), ids, np.array([len(text) for text in texts]))


def request_of(count: int, priority: Priority, prompt_tokens: int) -> Request:
    return Request(
        ["text"] * count,
        priority=priority,
        output=OutputSpec(dimension=8),
        prompt_tokens=prompt_tokens,
    )


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    texts = st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1)
    segments = []
    for _ in range(draw(st.integers(1, 4))):
        chunk = chunk_of(draw(texts))
        start = draw(st.integers(0, len(chunk) - 1))
        stop = draw(st.integers(start + 1, len(chunk)))
        request = request_of(
            len(chunk), draw(st.sampled_from(list(Priority))), draw(st.integers(0, 3))
        )
        segments.append(Segment(request, chunk, start, stop))
    padded = draw(st.none() | st.integers(9, 12))
    return Batch(draw(st.integers(0, 2)), tuple(segments), padded)


def assert_equal(found: Any, expected: Any) -> None:
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value)


@given(batches())
def test_a_batch_arrives_as_it_was_sent(sent: Batch) -> None:
    arrived = batch_of(arrays_of(sent))
    for fact in ("route", "padded_length", "texts", "tokens", "computed_tokens", "has_bulk"):
        assert getattr(arrived, fact) == getattr(sent, fact)
    assert not arrived.uses_prefixes
    assert_equal(InputBatch.of(arrived), InputBatch.of(sent))


def test_texts_arrive_with_their_prefixes() -> None:
    cache = PrefixCache(32, block_tokens=4)
    chunk = chunk_of([[1, 2, 3, 4, 5, 6, 7, 8, 9, n] for n in range(3)] + [[7] * 20])
    claims = [cache.claim(chunk.ids_of(place), owner=chunk) for place in range(4)]
    bulk = request_of(4, Priority.BULK, 2)
    sent = Batch(
        1,
        (
            Segment(bulk, chunk, 1, 3, (claims[1],) * 2),
            Segment(bulk, chunk, 0, 1, (claims[0],), 12, 8),
            Segment(bulk, chunk, 3, 4, (claims[3],)),
        ),
    )
    arrived = batch_of(arrays_of(sent))
    assert arrived.uses_prefixes
    assert arrived.segments[0].claims[0] is arrived.segments[0].claims[1]
    assert (arrived.segments[1].until, arrived.segments[1].computed_before) == (12, 8)
    assert arrived.computed_tokens == sent.computed_tokens
    assert_equal(PrefixInputBatch.of(arrived, 4), PrefixInputBatch.of(sent, 4))


@pytest.mark.parametrize("shape", [(3, 8), (0, 8), (1, 1)])
def test_rows_arrive_as_a_copy(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(1).random(shape, dtype=np.float32)
    arrays = row_arrays(rows, padded_tokens=5)
    found, padded_tokens = rows_of(arrays)
    np.testing.assert_array_equal(found, rows)
    assert padded_tokens == 5
    assert not np.shares_memory(found, arrays[1])


def test_ragged_rows_arrive_ragged() -> None:
    rows = RaggedRows.of([np.ones((n, 4), dtype=np.float32) * n for n in (2, 0, 3)], 4)
    found, _ = rows_of(row_arrays(rows, padded_tokens=0))
    assert isinstance(found, RaggedRows)
    np.testing.assert_array_equal(found.values, rows.values)
    np.testing.assert_array_equal(found.offsets, rows.offsets)
