"""`TokenChunk` sorts texts longest first; `Request` hands them out and takes their vectors in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.embeddings import OutputSpec
from millpond.errors import NonFiniteVector
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.token_chunk import TokenChunk
from millpond.stats import CallProgress

OUTPUT = OutputSpec(dimension=2)


def request_of(*texts: str, **options: object) -> Request:
    return Request(texts, priority=Priority.BULK, output=OUTPUT, **options)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_a_chunk_is_sorted_longest_first_and_keeps_every_texts_ids(sizes: list[int]) -> None:
    rows = np.arange(len(sizes)) + 100
    lengths = np.array(sizes, dtype=np.int32)
    ids = np.repeat(rows, lengths).astype(np.int32)

    chunk = TokenChunk.build(rows, ids, lengths)

    assert sorted(chunk.rows) == sorted(rows)
    assert (np.diff(chunk.lengths) <= 0).all()
    for place, row in enumerate(chunk.rows):
        own = chunk.ids[chunk.offsets[place] : chunk.offsets[place + 1]]
        assert own.tolist() == [row] * sizes[row - 100]
        assert chunk.lengths[place] == len(own)
    assert len(chunk) == len(sizes)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=40))
def test_a_text_has_the_same_digest_alone_and_beside_others(text: list[int]) -> None:
    ids = np.array(text, dtype=np.int32)
    alone = TokenChunk.build(np.array([7]), ids, np.array([len(ids)], np.int32))
    others = np.arange(3, dtype=np.int32)
    lengths = np.array([3, len(ids)], np.int32)
    beside = TokenChunk.build(np.array([3, 7]), np.concatenate([others, ids]), lengths)
    place = beside.rows.tolist().index(7)
    assert alone.digests[0] == beside.digests[place]
    assert alone.ids_of(0).tolist() == beside.ids_of(place).tolist() == text
    assert (alone.rows.tolist(), alone.lengths.tolist()) == ([7], [len(text)])


def test_texts_of_one_length_stay_in_the_order_they_came() -> None:
    chunk = TokenChunk.build(np.arange(4), np.zeros(8, np.int32), np.full(4, 2))
    assert chunk.rows.tolist() == [0, 1, 2, 3]


@given(st.lists(st.text(max_size=60), min_size=1, max_size=30), st.integers(1, 40))
def test_every_text_is_claimed_once_longest_first(texts: list[str], most_tokens: int) -> None:
    request = request_of(*texts)
    claimed: list[int] = []
    while request.untokenized:
        rows = request.next_rows(most_tokens)
        assert len(rows)
        assert len(rows) == 1 or request.size_guesses[rows].sum() <= most_tokens
        claimed.extend(rows.tolist())

    assert sorted(claimed) == list(range(len(texts)))
    sizes = [len(texts[row]) for row in claimed]
    assert sizes == sorted(sizes, reverse=True)


def test_the_guess_for_token_ids_is_exact() -> None:
    request = request_of([1, 2, 3], [4], tokenized=True)  # type: ignore[arg-type]
    assert request.waiting_tokens == 4


def test_a_request_keeps_vectors_and_errors_by_row_and_counts_down() -> None:
    seen: list[CallProgress] = []
    request = request_of("a", "b", "c", progress=seen.append, arrived_s=1.0)
    request.started_s = 2.0
    request.write(np.array([2, 0]), np.array([[5.0, 6.0], [1.0, 2.0]], dtype=np.float32))
    assert request.remaining == 1
    error = NonFiniteVector("it is not finite", index=1)
    request.fail(1, error)
    assert request.remaining == 0
    assert [progress.texts for progress in seen] == [2, 1]

    result = request.result(4.0)
    np.testing.assert_array_equal(result.vectors, [[1, 2], [np.nan, np.nan], [5, 6]])
    assert result.errors == {1: error}
    assert (result.timings.queue_s, result.timings.total_s) == (1.0, 3.0)


@pytest.mark.parametrize("error", [ValueError("I/O on closed file"), SystemExit(1)])
def test_a_progress_bar_that_cannot_be_drawn_does_no_harm(error: BaseException) -> None:
    def broken(progress: CallProgress) -> None:
        raise error

    request = request_of("a", "b", progress=broken)
    request.write(np.array([0]), np.zeros((1, 2), dtype=np.float32))
    request.fail(1, NonFiniteVector("it is not finite", index=1))
    assert request.remaining == 0


def test_progress_is_told_before_the_texts_count_as_done_and_with_no_lock_held() -> None:
    seen: list[tuple[int, bool]] = []

    def look(progress: CallProgress) -> None:
        seen.append((request.remaining, request._result_lock.locked()))

    request = request_of("a", progress=look)
    request.write(np.array([0]), np.zeros((1, 2), dtype=np.float32))
    assert seen == [(1, False)]


def test_progress_tells_what_was_cut_and_how_much_of_the_work_is_done() -> None:
    seen: list[CallProgress] = []
    request = request_of("a" * 24, "b" * 400, "c" * 24, progress=seen.append, reads_tokens=16)
    request.truncated[1] = True  # as the tokenizer finds
    request.write(np.array([1]), np.zeros((1, 2), dtype=np.float32))
    request.write(np.array([2, 0]), np.zeros((2, 2), dtype=np.float32))
    assert seen == [
        CallProgress(texts=1, truncated=1, share=0.5),
        CallProgress(texts=2, truncated=0, share=0.5),
    ]


def test_the_copy_of_a_future_in_a_forked_child_fails_though_its_lock_is_lost() -> None:
    future = request_of("a").future
    future._condition.acquire()
    error = RuntimeError("it stayed behind")
    future.fail_in_child(error)
    assert future.exception(timeout=0) is error


def test_a_request_says_how_far_it_is() -> None:
    request = request_of("a", "b")
    request.next_rows(1)
    assert repr(request).startswith(
        f"Request(id={request.id}, priority=bulk, texts=2, untokenized=1, remaining=2"
    )


@pytest.mark.parametrize("priority", list(Priority))
def test_a_priority_is_found_by_its_name(priority: Priority) -> None:
    assert Priority(priority.value) is priority
