"""The prefix cache by example: who finds what, and what happens when blocks are short."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.scheduler.prefix_cache import BlockAllocation, PrefixCache, PrefixCacheStats

Ids = npt.NDArray[np.int32]
BATCH, OTHER_BATCH = object(), object()


def text(*runs: tuple[int, int]) -> Ids:
    """Runs of ids: each a first id and how many count up from there."""
    return np.concatenate(
        [np.arange(first, first + count, dtype=np.int32) for first, count in runs]
    )


def finish(cache: PrefixCache, *claims: BlockAllocation) -> None:
    """Their batch went through."""
    for claim in claims:
        cache.commit(claim)
    for claim in claims:
        cache.release(claim)
    cache.check()


def remember(cache: PrefixCache, ids: Ids, *, split: int = 0, pin: bool = False) -> list[int]:
    """Send a text through by itself; its blocks are returned."""
    claim = cache.claim(ids, owner=object(), split=split, pin=pin)
    finish(cache, claim)
    return claim.blocks


def hits(cache: PrefixCache, ids: Ids, *, split: int = 0) -> int:
    """How many blocks of a text are found, without a new one being made."""
    claim = cache.claim(ids, owner=object(), split=split, until=0)
    cache.abort(claim)
    cache.release(claim)
    return claim.reused


def same_digest(key: object) -> int:
    return 0


# What is found again.


def test_a_new_text_gets_a_block_for_every_full_node() -> None:
    cache = PrefixCache(8, block_tokens=4)
    claim = cache.claim(text((0, 11)), owner=BATCH)
    assert claim.sizes == [4, 4]
    assert len(set(claim.blocks)) == 2
    assert (claim.reused, claim.cached_tokens, claim.cached_so_far) == (0, 0, 8)


def test_a_text_that_was_computed_is_found() -> None:
    cache = PrefixCache(8, block_tokens=4)
    blocks = remember(cache, text((0, 11)))
    claim = cache.claim(text((0, 11)), owner=BATCH)
    assert claim.blocks == blocks
    assert (claim.reused, claim.cached_tokens) == (2, 8)


def test_texts_share_what_they_have_in_common_from_the_beginning() -> None:
    cache = PrefixCache(8, block_tokens=4)
    blocks = remember(cache, text((0, 8), (100, 8)))
    claim = cache.claim(text((0, 8), (200, 8)), owner=BATCH)
    assert claim.blocks[:2] == blocks[:2]
    assert not set(claim.blocks[2:]) & set(blocks)
    assert (claim.reused, claim.cached_tokens, claim.cached_so_far) == (2, 8, 16)


def test_the_same_ids_after_another_beginning_are_not_the_same() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 4), (50, 4)))
    assert hits(cache, text((10, 4), (50, 4))) == 0
    assert hits(cache, text((50, 4))) == 0


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_text_shorter_than_a_block_is_not_remembered(length: int) -> None:
    cache = PrefixCache(8, block_tokens=4)
    claim = cache.claim(text((0, length)), owner=BATCH)
    assert (claim.blocks, claim.sizes, claim.cached_tokens) == ([], [], 0)
    finish(cache, claim)


def test_at_least_one_token_is_computed() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 8)))
    claim = cache.claim(text((0, 8)), owner=BATCH)
    assert (claim.reused, claim.cached_tokens, claim.cached_so_far) == (2, 7, 8)


def test_ids_that_are_not_int32_are_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        PrefixCache(8).claim(np.zeros(4, np.int64), owner=BATCH)  # type: ignore[arg-type]


def test_a_text_may_be_a_view_with_gaps() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 8)))
    assert hits(cache, np.repeat(text((0, 8)), 2)[::2]) == 2


# Where a text is cut.


def test_texts_with_the_same_prompt_share_it_to_its_last_token() -> None:
    cache = PrefixCache(8, block_tokens=4)
    prompt = (0, 6)
    remember(cache, text(prompt, (100, 5)), split=6)
    claim = cache.claim(text(prompt, (200, 5)), owner=BATCH, split=6)
    assert claim.sizes == [4, 2, 4]
    assert (claim.reused, claim.cached_tokens) == (2, 6)


def test_another_prompt_length_still_shares_the_full_blocks_before_it() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 16)), split=6)
    assert hits(cache, text((0, 16)), split=7) == 1
    assert hits(cache, text((0, 16))) == 1


@pytest.mark.parametrize(
    ("length", "split", "sizes"),
    [
        (12, 0, [4, 4, 4]),
        (13, 8, [4, 4, 4]),
        (13, 1, [1, 4, 4, 4]),
        (13, 7, [4, 3, 4]),
        (13, 13, [4, 4, 4, 1]),
        (6, 9, [4, 2]),  # a prompt that was truncated with its text
        (5, 3, [3]),
        (0, 3, []),
    ],
)
def test_a_text_is_cut_at_its_prompt(length: int, split: int, sizes: list[int]) -> None:
    cache = PrefixCache(8, block_tokens=4)
    assert cache.claim(text((0, length)), owner=BATCH, split=split).sizes == sizes


@given(length=st.integers(0, 100), split=st.integers(0, 100), block_tokens=st.integers(1, 20))
def test_only_the_tail_has_no_block(length: int, split: int, block_tokens: int) -> None:
    claim = PrefixCache(200, block_tokens=block_tokens).claim(
        text((0, length)), owner=BATCH, split=split
    )
    ends = np.cumsum(claim.sizes).tolist()
    assert all(0 < size <= block_tokens for size in claim.sizes)
    assert sum(size < block_tokens for size in claim.sizes) <= 1
    assert min(split, length) in {0, *ends}
    assert 0 <= length - claim.cached_so_far < block_tokens


# Batches in the making.


def test_texts_of_one_batch_use_each_others_blocks() -> None:
    cache = PrefixCache(8, block_tokens=4)
    first = cache.claim(text((0, 9)), owner=BATCH)
    second = cache.claim(text((0, 8), (100, 5)), owner=BATCH)
    assert second.blocks[:2] == first.blocks
    assert (second.reused, second.cached_tokens, len(second.blocks)) == (2, 8, 3)
    finish(cache, first, second)
    cache.check(idle=True)


def test_nobody_else_reads_a_block_before_it_is_filled() -> None:
    cache = PrefixCache(8, block_tokens=4)
    first = cache.claim(text((0, 9)), owner=BATCH)
    second = cache.claim(text((0, 9)), owner=OTHER_BATCH)
    assert (second.blocks, second.cached_tokens) == ([], 0)
    cache.commit(first)
    third = cache.claim(text((0, 9)), owner=OTHER_BATCH)
    assert (third.blocks, third.cached_tokens) == (first.blocks, 8)


def test_what_follows_a_strangers_pending_block_is_not_remembered() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 4)))
    cache.claim(text((0, 8)), owner=BATCH)
    claim = cache.claim(text((0, 8), (100, 8)), owner=OTHER_BATCH)
    assert (claim.sizes, claim.reused, claim.cached_tokens) == ([4], 1, 4)


def test_an_aborted_text_is_not_found() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 4)))
    claim = cache.claim(text((0, 12)), owner=BATCH)
    cache.abort(claim)
    cache.check()
    assert hits(cache, text((0, 12))) == 1
    cache.release(claim)
    cache.check(idle=True)
    assert cache.stats.blocks_cached == 1


def test_blocks_of_an_aborted_text_are_reused_first() -> None:
    cache = PrefixCache(3, block_tokens=4)
    kept = remember(cache, text((0, 4)))
    claim = cache.claim(text((100, 8)), owner=BATCH)
    cache.abort(claim)
    cache.release(claim)
    assert sorted(remember(cache, text((200, 8)))) == sorted(claim.blocks)
    assert hits(cache, text((0, 4))) == 1
    assert not set(kept) & set(claim.blocks)


def test_claims_that_reuse_an_aborted_text_let_go_of_its_blocks_later() -> None:
    cache = PrefixCache(4, block_tokens=4)
    first = cache.claim(text((0, 8)), owner=BATCH)
    second = cache.claim(text((0, 8), (100, 4)), owner=BATCH)
    cache.abort(first)
    cache.release(first)
    cache.check()
    assert cache.stats.blocks_in_use == 3
    cache.commit(second)
    cache.release(second)
    cache.check(idle=True)
    assert cache.stats.blocks_cached == 0


@pytest.mark.parametrize("release_first", [False, True])
def test_what_was_computed_from_an_aborted_text_is_forgotten(release_first: bool) -> None:
    cache = PrefixCache(4, block_tokens=4)
    first = cache.claim(text((0, 4)), owner=BATCH)
    second = cache.claim(text((0, 12)), owner=BATCH)
    cache.commit(second)
    if release_first:
        cache.release(second)
    cache.abort(first)
    cache.check()
    assert hits(cache, text((0, 12))) == 0
    remember(cache, text((0, 4)))  # its place is not taken by what hung on the old one
    for claim in (first,) if release_first else (first, second):
        cache.release(claim)
    cache.check(idle=True)
    assert hits(cache, text((0, 12))) == 1
    assert len(remember(cache, text((0, 12)))) == 3


def test_a_claim_ends_once() -> None:
    cache = PrefixCache(4, block_tokens=4)
    claim = cache.claim(text((0, 8)), owner=BATCH)
    with pytest.raises(AssertionError):
        cache.release(claim)
    cache.commit(claim)
    for again in (cache.commit, cache.abort):
        with pytest.raises(AssertionError):
            again(claim)
    cache.release(claim)
    with pytest.raises(AssertionError):
        cache.release(claim)
    cache.check(idle=True)


@pytest.mark.parametrize("first_commits_first", [False, True])
def test_a_filled_block_is_seen_when_all_before_it_are_filled(first_commits_first: bool) -> None:
    cache = PrefixCache(4, block_tokens=4)
    first = cache.claim(text((0, 4)), owner=BATCH)
    second = cache.claim(text((0, 12)), owner=BATCH)
    cache.commit(first if first_commits_first else second)
    assert hits(cache, text((0, 12))) == (1 if first_commits_first else 0)
    cache.commit(second if first_commits_first else first)
    assert hits(cache, text((0, 12))) == 3


def test_a_cancelled_claim_leaves_nothing_behind_but_evictions() -> None:
    cache = PrefixCache(3, block_tokens=4)
    remember(cache, text((0, 8)))
    before = cache.stats
    cache.cancel(cache.claim(text((0, 4), (100, 7)), owner=BATCH))
    cache.check(idle=True)
    assert cache.stats == before
    assert hits(cache, text((0, 8))) == 2
    assert hits(cache, text((0, 4), (100, 7))) == 1


# Long texts, a part at a time.


def test_blocks_are_made_for_no_more_than_what_is_computed() -> None:
    cache = PrefixCache(8, block_tokens=4)
    ids = text((0, 20))
    first = cache.claim(ids, owner=BATCH, until=11)
    assert (first.cached_so_far, first.cached_tokens) == (8, 0)
    cache.commit(first)
    second = cache.claim(ids, owner=OTHER_BATCH, until=16)
    assert (second.reused, second.cached_so_far, second.cached_tokens) == (2, 16, 8)
    assert second.blocks[:2] == first.blocks


def test_one_token_before_until_is_computed() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 20)))
    assert cache.claim(text((0, 20)), owner=BATCH, until=8).cached_tokens == 7
    assert cache.claim(text((0, 20)), owner=BATCH, until=99).cached_tokens == 19


# Too few blocks.


def test_a_full_pool_means_that_less_is_remembered() -> None:
    cache = PrefixCache(3, block_tokens=4)
    first = cache.claim(text((0, 8)), owner=BATCH)
    second = cache.claim(text((100, 12)), owner=BATCH)
    third = cache.claim(text((200, 12)), owner=BATCH)
    assert (len(second.blocks), len(third.blocks)) == (1, 0)
    assert third.cached_tokens == 0
    finish(cache, first, second, third)


def test_a_cache_without_blocks_remembers_nothing() -> None:
    cache = PrefixCache(0)
    assert remember(cache, text((0, 100)), split=50, pin=True) == []


def test_a_text_does_not_evict_its_own_beginning() -> None:
    cache = PrefixCache(2, block_tokens=4)
    blocks = remember(cache, text((0, 8)))
    claim = cache.claim(text((0, 8), (100, 8)), owner=BATCH)
    assert (claim.blocks, claim.reused) == (blocks, 2)


def test_the_text_that_was_not_used_for_longest_goes_first() -> None:
    cache = PrefixCache(3, block_tokens=4)
    for first in (0, 100, 200):
        remember(cache, text((first, 4)))
    remember(cache, text((0, 4)))
    remember(cache, text((300, 4)))
    assert [hits(cache, text((first, 4))) for first in (0, 100, 200, 300)] == [1, 0, 1, 1]
    assert cache.stats.evictions == 1


def test_leaves_are_evicted_before_what_they_hang_on() -> None:
    cache = PrefixCache(4, block_tokens=4)
    remember(cache, text((0, 16)))
    for evicted in (1, 2, 3):
        remember(cache, text((100 * evicted, 4)))
        assert cache.stats.evictions == evicted
        assert cache.pool.free == 4
        found = cache.claim(text((0, 16)), owner=BATCH, until=0)
        assert found.reused == 4 - evicted
        cache.abort(found)
        cache.release(found)
        cache.check()
        # The look-up made the old text the latest one, so the newer one goes next.
        for newer in range(1, evicted + 1):
            hits(cache, text((100 * newer, 4)))


# Digests that collide.


def test_a_collision_is_a_miss() -> None:
    cache = PrefixCache(8, block_tokens=4, digest=same_digest)
    blocks = remember(cache, text((0, 4)))
    claim = cache.claim(text((100, 4)), owner=BATCH)
    assert (claim.blocks, claim.cached_tokens) == ([], 0)
    finish(cache, claim)
    assert remember(cache, text((0, 4))) == blocks


def test_the_same_ids_under_the_same_digest_need_the_same_parent() -> None:
    def digest_of_ids(key: tuple[int, bytes]) -> int:
        return hash(key[1])

    cache = PrefixCache(8, block_tokens=4, digest=digest_of_ids)
    remember(cache, text((0, 4), (50, 4)))
    remember(cache, text((100, 4)))
    assert hits(cache, text((100, 4), (50, 4))) == 1
    assert len(remember(cache, text((100, 4), (50, 4)))) == 1
    assert hits(cache, text((50, 4))) == 0


def test_a_place_taken_by_a_collision_is_free_after_its_eviction() -> None:
    cache = PrefixCache(1, block_tokens=4, digest=lambda key: hash(key) if key[1][0] else 0)
    remember(cache, text((0, 4)))
    remember(cache, text((1, 4)))  # evicts it
    remember(cache, text((256, 4)))
    assert hits(cache, text((256, 4))) == 1


# Pinned prompts.


def test_a_pinned_prompt_outlives_any_number_of_texts() -> None:
    cache = PrefixCache(8, block_tokens=4)
    prompt = (0, 6)
    remember(cache, text(prompt, (50, 8)), split=6, pin=True)
    for first in range(100, 2000, 100):
        remember(cache, text((first, 32)))
    assert hits(cache, text(prompt, (50, 8)), split=6) == 2
    stats = cache.stats
    assert (stats.blocks_pinned, stats.blocks_in_use) == (2, 2)


def test_a_prompt_is_pinned_once() -> None:
    cache = PrefixCache(8, block_tokens=4)
    for first in (50, 60, 70):
        remember(cache, text((0, 6), (first, 3)), split=6, pin=True)
    assert cache.stats.blocks_pinned == 2
    cache.check(idle=True)


def test_a_prompt_that_was_found_can_be_pinned_later() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 8)), split=6)
    assert cache.stats.blocks_pinned == 0
    remember(cache, text((0, 8)), split=6, pin=True)
    assert cache.stats.blocks_pinned == 2


@pytest.mark.parametrize(("most_pinned", "pinned"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 5)])
def test_pinned_blocks_are_at_most_their_share(most_pinned: float, pinned: int) -> None:
    cache = PrefixCache(8, block_tokens=4, most_pinned=most_pinned)
    blocks = remember(cache, text((0, 20)), split=20, pin=True)
    assert cache.stats.blocks_pinned == pinned
    # The prompt's beginning is what was pinned.
    assert [cache.pool.references(block) for block in blocks] == [1] * pinned + [0] * (5 - pinned)


def test_what_another_text_of_the_batch_has_still_to_fill_is_not_pinned() -> None:
    cache = PrefixCache(8, block_tokens=4)
    first = cache.claim(text((0, 4)), owner=BATCH)
    second = cache.claim(text((0, 4), (50, 4)), owner=BATCH, split=8, pin=True)
    cache.commit(second)
    assert cache.stats.blocks_pinned == 0
    cache.abort(first)
    for claim in (first, second):
        cache.release(claim)
    cache.check(idle=True)


# What it tells about itself.


def test_its_figures_add_up() -> None:
    cache = PrefixCache(8, block_tokens=4)
    remember(cache, text((0, 10)), split=4, pin=True)
    remember(cache, text((0, 10)), split=4, pin=True)
    remember(cache, text((0, 4), (50, 6)), split=4)
    assert cache.stats == PrefixCacheStats(
        looked_up_tokens=30,
        hit_tokens=0 + 8 + 4,
        evictions=0,
        block_tokens=4,
        blocks=8,
        blocks_in_use=1,
        blocks_pinned=1,
        blocks_cached=2,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        cache.stats.evictions = 1  # type: ignore[misc]


def test_its_repr_has_the_counts() -> None:
    cache = PrefixCache(8, block_tokens=4)
    claim = cache.claim(text((0, 10)), owner=BATCH)
    assert repr(claim) == "BlockAllocation(blocks=2, reused=0, cached_tokens=0, state=open)"
    assert repr(cache) == (
        "PrefixCache(nodes=2, pinned=0, claims=1, evictions=0, "
        "pool=BlockPool(size=8, in_use=2, free=6, kept=0))"
    )


def damages(cache: PrefixCache, claim: BlockAllocation) -> Sequence[tuple[str, object]]:
    """Ways to get the books wrong: what to set, on the claim's first node."""
    node = claim.nodes[0]
    return [("owner", BATCH), ("pinned", True), ("block", claim.blocks[1]), ("key", node.key + 1)]


@pytest.mark.parametrize("damage", range(4))
def test_the_check_notices_books_that_disagree(damage: int) -> None:
    cache = PrefixCache(8, block_tokens=4)
    claim = cache.claim(text((0, 10)), owner=BATCH)
    finish(cache, claim)
    name, value = damages(cache, claim)[damage]
    setattr(claim.nodes[0], name, value)
    with pytest.raises(AssertionError):
        cache.check()


def test_the_check_notices_a_remembered_block_whose_parent_is_not() -> None:
    cache = PrefixCache(8, block_tokens=4)
    claim = cache.claim(text((0, 10)), owner=BATCH)
    finish(cache, claim)
    cache._evicted(claim.blocks[0])
    cache.pool.forget(claim.blocks[0])
    with pytest.raises(AssertionError):
        cache.check()


def test_the_idle_check_notices_a_claim_that_was_never_released() -> None:
    cache = PrefixCache(8, block_tokens=4)
    claim = cache.claim(text((0, 3)), owner=BATCH)
    cache.check()
    with pytest.raises(AssertionError):
        cache.check(idle=True)
    finish(cache, claim)
