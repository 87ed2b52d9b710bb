"""Plans with a prefix cache, by example: parts of texts, whole after all, and what is pinned."""

from __future__ import annotations

import pytest

from millpond.scheduling.batch import Batch
from millpond.scheduling.job import Lane
from millpond.scheduling.prefix_cache import PrefixCache
from millpond.scheduling.scheduler import BULK_PATIENCE, Scheduler
from tokenized_jobs import WAIT_S, job_of, scheduler_of, submit

LONG = tuple(range(1000, 1030))


def land(scheduler: Scheduler, batch: Batch | None, *, keep: bool = True) -> Batch:
    assert batch is not None
    scheduler.landed(batch, 0.0, keep=keep)
    return batch


def parts_of(scheduler: Scheduler, **how: bool) -> list[tuple[int, bool]]:
    """What is computed of one text, batch by batch, and whether it takes another."""
    parts = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        assert len(parts) < 20, "it has no end"
        land(scheduler, batch, **how)
        (segment,) = batch.segments
        parts.append((batch.computed_tokens, segment.is_unfinished))
    return parts


def test_a_text_longer_than_a_batch_is_computed_in_parts() -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=10, prefixes=cache)
    submit(scheduler, job_of([LONG]))
    assert parts_of(scheduler) == [(8, True), (8, True), (8, True), (6, False)]
    cache.check(idle=True)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_where_the_pool_is_too_small_for_it_the_rest_goes_whole(blocks: int) -> None:
    cache = PrefixCache(blocks, block_tokens=4)
    scheduler = scheduler_of(budget=8, prefixes=cache)
    submit(scheduler, job_of([LONG]))
    parts = parts_of(scheduler)
    assert sum(tokens for tokens, _ in parts) == len(LONG)
    assert parts[-1] == (len(LONG) - sum(tokens for tokens, _ in parts[:-1]), False)
    assert len(parts) == {0: 1, 1: 2, 3: 3}[blocks]
    cache.check(idle=True)


def test_queries_go_in_between_the_parts() -> None:
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    long = submit(scheduler, job_of([LONG]))
    order = []
    for number in range(4):
        order.append(land(scheduler, scheduler.next_batch(0.0)).jobs)
        query = submit(scheduler, job_of([(number, 7)], lane=Lane.INTERACTIVE))
        order.append(land(scheduler, scheduler.next_batch(0.0)).jobs)
        assert order[-1] == (query,)
    assert order[::2] == [(long,)] * 4
    assert scheduler.next_batch(0.0) is None


def test_the_rest_of_a_text_is_due_like_any_that_waits() -> None:
    """Queries without end would keep it from ever running otherwise."""
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    long = submit(scheduler, job_of([LONG]))
    land(scheduler, scheduler.next_batch(0.0))
    ran = []
    for number in range(10):
        now_s = BULK_PATIENCE * WAIT_S * 1.01 * number
        submit(scheduler, job_of([(number, 7)], lane=Lane.INTERACTIVE), now_s)
        batch = scheduler.next_batch(now_s)
        assert batch is not None
        scheduler.landed(batch, now_s, keep=True)
        ran.append(long in batch.jobs)
    assert ran.count(True) == 3


def test_a_part_that_is_no_good_sends_the_text_whole() -> None:
    """In parts again it would be no good again, and never end."""
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=8, prefixes=cache)
    submit(scheduler, job_of([LONG]))
    assert parts_of(scheduler, keep=False) == [(8, True), (len(LONG), False)]
    cache.check(idle=True)


def test_a_batch_that_fails_computes_its_text_whole() -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=8, prefixes=cache)
    submit(scheduler, job_of([LONG]))
    land(scheduler, scheduler.next_batch(0.0))
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    assert batch.segments[0].is_unfinished
    scheduler.failed(batch)
    assert not batch.uncached().uses_prefixes
    assert not batch.uncached().segments[0].is_unfinished
    scheduler.landed(batch.uncached(), 0.0, keep=True)
    assert scheduler.next_batch(0.0) is None
    cache.check(idle=True)


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_job_that_ends_between_parts_lets_go_of_its_blocks(in_flight: bool) -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=8, prefixes=cache)
    job = submit(scheduler, job_of([LONG]))
    first = scheduler.next_batch(0.0)
    assert first is not None
    if in_flight:
        scheduler.forget(job)
    scheduler.landed(first, 0.0, keep=True)
    if not in_flight:
        assert cache.stats.blocks_in_use == 2
        scheduler.forget(job)
    assert scheduler.next_batch(0.0) is None
    cache.check(idle=True)


def test_two_long_texts_that_begin_alike_share_their_parts() -> None:
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    submit(scheduler, job_of([LONG, (*LONG[:-1], 7)]))
    tokens = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        tokens.append(land(scheduler, batch).computed_tokens)
    assert sum(tokens) <= len(LONG) + 2


# Whole after all.


def planned(scheduler: Scheduler) -> Batch:
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    return batch


def test_a_batch_that_saves_little_is_computed_whole_and_keeps_nothing() -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=100, prefixes=cache, min_saved_tokens=13)
    submit(scheduler, job_of([LONG, LONG[:12]]))
    batch = planned(scheduler)
    assert (batch.computed_tokens, batch.uses_prefixes) == (42, False)
    cache.check(idle=True)
    scheduler.landed(batch, 0.0, keep=True)
    submit(scheduler, job_of([LONG, LONG[:20], (7, 8)]))
    assert planned(scheduler).uses_prefixes


def test_a_batch_is_not_computed_whole_where_that_is_more_than_it_may_hold() -> None:
    scheduler = scheduler_of(
        budget=32, prefixes=PrefixCache(64, block_tokens=4), min_saved_tokens=100
    )
    submit(scheduler, job_of([LONG[:n] for n in (28, 27, 26, 25)]))
    batch = planned(scheduler)
    assert batch.tokens > 32 >= batch.computed_tokens


# What is pinned.


def test_only_a_text_that_still_has_its_prompt_pins_it() -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=64, prefixes=cache)
    cut = job_of([LONG], shared_tokens=6, is_pinned=True)
    cut.truncated[:] = True
    submit(scheduler, cut)
    land(scheduler, scheduler.next_batch(0.0))
    assert cache.stats.blocks_pinned == 0
    submit(scheduler, job_of([LONG], shared_tokens=6, is_pinned=True))
    land(scheduler, scheduler.next_batch(0.0))
    assert cache.stats.blocks_pinned == 2


def test_a_part_of_bulk_counts_as_bulk() -> None:
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    submit(scheduler, job_of([LONG]))
    batch = planned(scheduler)
    assert batch.has_bulk
    assert batch.lane_texts(Lane.BULK) == 0
    scheduler.record(batch, 0.5)
    assert scheduler._bulk_tokens_per_s == 16
