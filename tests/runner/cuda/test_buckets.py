"""The sizes a packed batch may have on a GPU, and a batch as the integers of one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.runner.cuda.buckets import Bucket, PackedIntegers, bucket_for, query_buckets

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=200)


@given(LENGTHS)
def test_a_bucket_has_room_for_the_batch_and_wastes_little(lengths: list[int]) -> None:
    tokens = sum(lengths)
    bucket = bucket_for(tokens, len(lengths), max(lengths))
    assert tokens < bucket.rows, "empty texts need a row to point at"
    assert len(lengths) <= bucket.texts
    assert max(lengths) <= bucket.longest
    if tokens >= 1024:
        assert bucket.rows <= (tokens + 1) * 1.125 + 1


@given(st.integers(1, 40_000))
def test_a_bucket_is_its_own_bucket(tokens: int) -> None:
    rows = bucket_for(tokens, 1, 1).rows
    assert bucket_for(rows - 1, 1, 1).rows == rows


def test_there_are_few_sizes() -> None:
    assert len({bucket_for(tokens, 1, 1).rows for tokens in range(1, 32_768)}) <= 56


@given(LENGTHS)
def test_invariant_rows_come_in_multiples(lengths: list[int]) -> None:
    rows = bucket_for(sum(lengths), len(lengths), max(lengths), invariant_rows=1024).rows
    assert rows % 1024 == 0
    assert rows - 1024 <= sum(lengths) < rows


def test_a_text_that_fits_has_the_same_rows_in_any_company() -> None:
    assert {bucket_for(n, 1, n, invariant_rows=1024).rows for n in (1, 17, 1023)} == {1024}


@pytest.mark.parametrize(
    ("max_length", "room"), [(None, 512), (8192, 512), (512, 512), (256, 256), (64, 128)]
)
def test_with_invariant_rows_the_room_for_a_text_is_the_same_in_any_company(
    max_length: int | None, room: int
) -> None:
    longest = {
        bucket_for(600, 3, n, invariant_rows=1024, max_length=max_length).longest
        for n in range(1, min(512, max_length or 512))
    }
    assert longest == {room}


@given(LENGTHS, st.randoms(use_true_random=False))
def test_a_filled_bucket_says_where_every_text_is(lengths: list[int], random: object) -> None:
    sizes = np.array(sorted(lengths, reverse=True), dtype=np.int64)
    ids = np.arange(1, sizes.sum() + 1)
    prompts = sizes // 2
    bucket = bucket_for(len(ids), len(sizes), int(sizes[0]))
    integers = np.full(sum(bucket.sizes), -7)
    bucket.fill(integers, ids, sizes, prompts, pad_id=0)

    found = PackedIntegers(*np.split(integers, np.cumsum(bucket.sizes)[:-1]))
    texts, tokens = len(sizes), len(ids)
    assert (integers >= 0).all(), "every integer is written"
    assert np.array_equal(found.ids[:tokens], ids)
    assert not found.ids[tokens:].any()
    for start, length, prompt, first in zip(
        found.starts, found.lengths, found.prompt_lengths, found.edges, strict=False
    ):
        assert first == start
        assert prompt == length // 2
        assert np.array_equal(found.positions[start : start + length], np.arange(length))
    assert np.array_equal(np.diff(found.edges), found.lengths), "padding is in no sequence"
    assert not found.lengths[texts:].any()
    assert (found.starts[texts:] < bucket.rows).all(), "an empty text points at a row there is"


def test_a_batch_that_fills_a_bucket_to_the_brim_is_refused() -> None:
    with pytest.raises(AssertionError):
        Bucket(4, 8, 128).fill(
            np.zeros(100, np.int64), np.arange(4), np.array([4]), np.array([0]), pad_id=0
        )


def test_warming_up_covers_a_lone_query_and_a_crowd() -> None:
    alone = query_buckets(32_768, 1)
    for tokens in (1, 8, 63, 64, 200, 255):
        assert bucket_for(tokens, 1, tokens) in alone
    assert len(alone) <= 5
    many = query_buckets(32_768, 64)
    for texts, tokens in ((1, 8), (1, 40), (32, 300), (64, 700)):
        assert bucket_for(tokens, texts, 25) in many
    assert len(many) <= 10
    assert all(bucket.rows <= 512 for bucket in query_buckets(512, 64))
