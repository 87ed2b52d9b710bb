"""A planned batch as integers: against a plain loop over its texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slot_memory import texts_and_ends
from tokenized_requests import Ids, chunk_of, request_of, scheduler_of, submit

from millpond.runner.input_batch import InputBatch, PrefixInputBatch
from millpond.scheduler.batch import Batch, Segment
from millpond.scheduler.prefix_cache import BlockAllocation, PrefixCache
from millpond.scheduler.request import Priority

TEXTS = st.builds(
    lambda base, length: base[:length],
    st.sampled_from([(0,) * 20, (0, 0, 0, 0, 1) * 4, (5,) + (0,) * 19]),
    st.integers(1, 20),
)


def segment_of(texts: list[Ids], *, prompt_tokens: int = 0) -> Segment:
    request = request_of(texts, prompt_tokens=prompt_tokens)
    return Segment(request, chunk_of(request), 0, len(texts))


# Whole texts.


@given(
    segments=st.lists(
        st.tuples(st.lists(TEXTS, min_size=1, max_size=5), st.integers(0, 3)),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
def test_texts_stand_longest_first_each_with_its_own_ids(
    segments: list[tuple[list[Ids], int]], data: st.DataObject
) -> None:
    made = [segment_of(texts, prompt_tokens=prompt) for texts, prompt in segments]
    start = data.draw(st.integers(0, made[0].stop - 1))
    batch = Batch(0, (made[0]._replace(start=start), *made[1:]))
    layout = InputBatch.of(batch)
    texts = [ids.tolist() for ids, _ in texts_and_ends(batch)]
    prompts = [s.request.prompt_tokens for s in batch.segments for _ in range(s.texts)]
    order = layout.order.tolist()
    assert sorted(order) == list(range(len(texts)))
    assert layout.lengths.tolist() == [len(texts[place]) for place in order]
    assert layout.lengths.tolist() == sorted(layout.lengths.tolist(), reverse=True)
    assert layout.ids.tolist() == [one for place in order for one in texts[place]]
    assert layout.prompt_lengths.tolist() == [prompts[place] for place in order]
    assert layout.ids.dtype == layout.prompt_lengths.dtype == np.int64


# Texts after prefixes.


def expected(batch: Batch, block_tokens: int) -> dict[str, list[int]]:
    """The same, token by token."""
    claims: list[BlockAllocation] = [
        claim for segment in batch.segments for claim in segment.claims or ()
    ]
    texts = list(zip(claims, texts_and_ends(batch), strict=True))
    prompts = [s.request.prompt_tokens for s in batch.segments for _ in range(s.texts)]
    places = sorted(
        range(len(texts)),
        key=lambda place: (
            texts[place][0].cached_tokens - texts[place][1][1],
            -texts[place][0].cached_tokens,
            place,
        ),
    )
    made: dict[str, list[int]] = {name: [] for name in PrefixInputBatch.__dataclass_fields__}
    made["order"] = places
    for prompt, (claim, (ids, end)) in ((prompts[place], texts[place]) for place in places):
        cached, row = claim.cached_tokens, len(made["ids"])
        left_out = max(0, min(prompt, len(ids)) - cached)
        made["prompt_lengths"].append(left_out if end == len(ids) else 0)
        made["lengths"].append(end - cached)
        made["prefixes"].append(cached)
        made["ids"] += ids[cached:end].tolist()
        made["positions"] += range(cached, end)
        position = 0
        for number, (block, size) in enumerate(zip(claim.blocks, claim.sizes, strict=True)):
            for slot in range(block * block_tokens, block * block_tokens + size):
                if position < cached:
                    made["read"].append(slot)
                if number >= claim.reused:
                    made["rows"].append(row + position - cached)
                    made["written"].append(slot)
                position += 1
    return made


def check(batch: Batch, block_tokens: int) -> PrefixInputBatch:
    layout = PrefixInputBatch.of(batch, block_tokens)
    for name, values in expected(batch, block_tokens).items():
        found = getattr(layout, name)
        assert found.tolist() == values, name
        assert found.dtype == np.int64, name
    return layout


@settings(max_examples=150, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.lists(TEXTS, min_size=1, max_size=5),
            st.sampled_from([0, 3, 5]),
            st.sampled_from([0, 4]),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    blocks=st.sampled_from([0, 1, 5, 30]),
    block_tokens=st.integers(1, 4),
    budget=st.sampled_from([6, 20, 60]),
)
def test_every_token_has_its_place_its_position_and_its_slot(
    calls: list[tuple[list[Ids], int, int, bool]], blocks: int, block_tokens: int, budget: int
) -> None:
    cache = PrefixCache(blocks, block_tokens=block_tokens)
    scheduler = scheduler_of(budget=budget, prefixes=cache)
    for texts, split, left_out, is_query in calls:
        priority = Priority.INTERACTIVE if is_query else Priority.BULK
        request = request_of(texts, shared_tokens=split, prompt_tokens=left_out, priority=priority)
        submit(scheduler, request)
        if is_query:
            continue
        while (batch := scheduler.next_batch(0.0)) is not None:
            check(batch, block_tokens)
            scheduler.completed(batch, 0.0, keep=True)


def claim(
    blocks: list[int], sizes: list[int], reused: int, cached: int, length: int
) -> BlockAllocation:
    return BlockAllocation(blocks, sizes, reused, cached, length)


def test_a_full_block_two_short_ones_and_a_tail_without_one() -> None:
    """Blocks of 4 slots; the prompt ends after 6 tokens, and 2 + 4 + 1 follow."""
    segment = segment_of([tuple(range(100, 111))])
    own = claim([7, 3, 0], [4, 2, 4], reused=2, cached=6, length=11)
    layout = check(Batch(0, (segment._replace(claims=(own,)),)), 4)
    assert layout.read.tolist() == [28, 29, 30, 31, 12, 13]
    assert layout.ids.tolist() == [106, 107, 108, 109, 110]
    assert layout.positions.tolist() == [6, 7, 8, 9, 10]
    assert (layout.rows.tolist(), layout.written.tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_of_a_text_that_is_all_there_the_last_token_is_computed_and_not_kept() -> None:
    segment = segment_of([tuple(range(8))])
    own = claim([5, 2], [4, 4], reused=2, cached=7, length=8)
    layout = check(Batch(0, (segment._replace(claims=(own,)),)), 4)
    assert layout.ids.tolist() == [7]
    assert layout.read.tolist() == [20, 21, 22, 23, 8, 9, 10]
    assert layout.rows.tolist() == layout.written.tolist() == []


def test_a_part_of_a_text_ends_before_the_text_does() -> None:
    segment = segment_of([tuple(range(30))])
    own = claim([1, 2, 3], [4, 4, 4], reused=1, cached=4, length=30)
    batch = Batch(0, (segment._replace(claims=(own,), until=12, computed_before=4),))
    layout = check(batch, 4)
    assert layout.ids.tolist() == list(range(4, 12))
    assert layout.written.tolist() == list(range(8, 16))
    assert (batch.tokens, batch.cached_tokens, batch.computed_tokens) == (8, 0, 8)


@pytest.mark.parametrize("first", [0, 1])
def test_texts_alike_in_what_is_computed_and_cached_are_neighbours(first: int) -> None:
    segment = segment_of([(1,) * 9, (2,) * 9, (3,) * 5, (4,) * 5])
    claims = [
        claim([0], [4], 1, 4, 9),
        claim([], [], 0, 0, 9),
        claim([], [], 0, 0, 5),
        claim([1], [4], 1, 4, 5),
    ]
    claims[:2] = claims[:2][:: 1 - 2 * first]
    layout = check(Batch(0, (segment._replace(claims=tuple(claims)),)), 4)
    assert layout.lengths.tolist() == [9, 5, 5, 1]
    assert layout.prefixes.tolist() == [0, 4, 0, 4]
