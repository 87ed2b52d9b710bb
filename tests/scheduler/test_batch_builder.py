"""Plans with a prefix cache, by example: parts of texts, whole after all, and what is pinned."""

from __future__ import annotations

from typing import Any

import pytest
from tokenized_requests import WAIT_S, Ids, request_of, scheduler_of, submit

from millpond.scheduler.batch import Batch
from millpond.scheduler.batch_builder import most_keys
from millpond.scheduler.prefix_cache import BlockAllocation, PrefixCache
from millpond.scheduler.request import Priority
from millpond.scheduler.scheduler import STARVATION_LIMIT, Scheduler

LONG = tuple(range(1000, 1030))


def land(scheduler: Scheduler, batch: Batch | None, *, keep: bool = True) -> Batch:
    assert batch is not None
    scheduler.completed(batch, 0.0, keep=keep)
    return batch


def planned(scheduler: Scheduler) -> Batch:
    batch = scheduler.next_batch(0.0)
    assert batch is not None
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
    submit(scheduler, request_of([LONG]))
    assert parts_of(scheduler) == [(8, True), (8, True), (8, True), (6, False)]
    cache.check(idle=True)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_where_the_pool_is_too_small_for_it_the_rest_goes_whole(blocks: int) -> None:
    cache = PrefixCache(blocks, block_tokens=4)
    scheduler = scheduler_of(budget=8, prefixes=cache)
    submit(scheduler, request_of([LONG]))
    parts = parts_of(scheduler)
    assert sum(tokens for tokens, _ in parts) == len(LONG)
    assert parts[-1] == (len(LONG) - sum(tokens for tokens, _ in parts[:-1]), False)
    assert len(parts) == {0: 1, 1: 2, 3: 3}[blocks]
    cache.check(idle=True)


def test_queries_go_in_between_the_parts() -> None:
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    long = submit(scheduler, request_of([LONG]))
    order = []
    for number in range(4):
        order.append(land(scheduler, scheduler.next_batch(0.0)).requests)
        query = submit(scheduler, request_of([(number, 7)], priority=Priority.INTERACTIVE))
        order.append(land(scheduler, scheduler.next_batch(0.0)).requests)
        assert order[-1] == (query,)
    assert order[::2] == [(long,)] * 4
    assert scheduler.next_batch(0.0) is None


def test_the_rest_of_a_text_is_due_like_any_that_waits() -> None:
    """Queries without end would keep it from ever running otherwise."""
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    long = submit(scheduler, request_of([LONG]))
    land(scheduler, scheduler.next_batch(0.0))
    ran = []
    for number in range(10):
        now_s = STARVATION_LIMIT * WAIT_S * 1.01 * number
        submit(scheduler, request_of([(number, 7)], priority=Priority.INTERACTIVE), now_s)
        batch = scheduler.next_batch(now_s)
        assert batch is not None
        scheduler.completed(batch, now_s, keep=True)
        ran.append(long in batch.requests)
    assert ran.count(True) == 3


# Turns.


def names_in(scheduler: Scheduler, names: dict[int, str]) -> list[list[str]]:
    """The requests of each batch, until there is none."""
    order = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        assert len(order) < 40, "it has no end"
        order.append([names[request.id] for request in land(scheduler, batch).requests])
    return order


def short(number: int, tokens: int = 3) -> Ids:
    return (number,) * tokens


@pytest.mark.parametrize("blocks", [3, 64])
@pytest.mark.parametrize("priority", Priority)
def test_the_replica_that_began_a_text_goes_on_with_it(priority: Priority, blocks: int) -> None:
    """If the others began it anew whenever they are idle, it might have no end."""
    scheduler = scheduler_of(
        budget=8, caches=[PrefixCache(blocks, block_tokens=4) for _ in range(3)]
    )
    submit(scheduler, request_of([LONG], priority=priority))
    land(scheduler, scheduler.next_batch(0.0, replica=1))
    assert scheduler.holds_parts
    for other in (0, 2):
        assert scheduler.next_batch(0.0, replica=other) is None
    submit(scheduler, request_of([short(1)], priority=Priority.BULK))
    beside = land(scheduler, scheduler.next_batch(0.0, replica=0))  # what else there is goes on
    assert beside.tokens == 3
    batches = 0
    while (batch := scheduler.next_batch(0.0, replica=1)) is not None:
        land(scheduler, batch)
        batches += 1
    assert batches == {3: 2, 64: 3}[blocks]
    assert not scheduler.holds_parts
    scheduler.check_idle()


@pytest.mark.parametrize("priority", Priority)
def test_texts_of_a_priority_go_in_beside_the_parts_of_a_long_one(priority: Priority) -> None:
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    names = {submit(scheduler, request_of([LONG], priority=priority)).id: "long"}
    for number in range(4):
        names[submit(scheduler, request_of([short(number)], priority=priority)).id] = f"s{number}"
    order = names_in(scheduler, names)
    assert order[:3] == [["long", "s0"], ["s1", "s2"], ["s3", "long"]]
    assert all(batch == ["long"] for batch in order[3:])


@pytest.mark.parametrize("priority", Priority)
def test_the_rest_of_a_text_takes_turns_with_those_that_came_meanwhile(priority: Priority) -> None:
    """One that always went first would keep the others waiting until it is through."""
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    names = {submit(scheduler, request_of([LONG], priority=priority)).id: "long"}
    order = []
    for number in range(3):
        first = planned(scheduler)
        names[submit(scheduler, request_of([short(number, 8)], priority=priority)).id] = (
            f"s{number}"
        )
        order.append([names[request.id] for request in land(scheduler, first).requests])
    assert order + names_in(scheduler, names) == [
        *(["long"], ["s0"], ["long"], ["s1"], ["s2"]),
        *(["long"], ["long"], ["long"]),
    ]


def test_a_long_text_is_not_kept_waiting_by_short_ones_without_end() -> None:
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    long = submit(scheduler, request_of([LONG], priority=Priority.INTERACTIVE))
    for number in range(12):
        submit(scheduler, request_of([short(number, 4)], priority=Priority.INTERACTIVE))
        batch = land(scheduler, scheduler.next_batch(0.0))
        if any(s.request is long and not s.is_unfinished for s in batch.segments):
            return
    raise AssertionError("it waits for ever")


def test_two_long_texts_share_a_batch_that_neither_may_fill() -> None:
    scheduler = scheduler_of(budget=16, prefixes=PrefixCache(64, block_tokens=4))
    texts = [tuple(range(100 * n, 100 * n + 40)) for n in range(3)]
    one, two, three = (submit(scheduler, request_of([text])) for text in texts)
    batches = [land(scheduler, scheduler.next_batch(0.0)) for _ in range(3)]
    assert [batch.requests for batch in batches] == [(one, two), (three, one), (two, three)]
    assert [batch.computed_tokens for batch in batches] == [16, 16, 16]


@pytest.mark.parametrize("priority", Priority)
def test_a_text_that_fits_into_a_batch_is_not_cut_to_be_divided(priority: Priority) -> None:
    """Several workers divide texts, and not a text."""
    text = tuple(range(500))
    scheduler = scheduler_of(budget=1024, prefixes=PrefixCache(256))
    submit(scheduler, request_of([text], priority=priority))
    batch = scheduler.next_batch(0.0, bulk_shares=4, query_shares=4)
    assert batch is not None
    assert (batch.tokens, batch.segments[0].is_unfinished) == (500, False)


# Keys.


def test_texts_that_go_on_from_a_long_prefix_are_bounded_by_the_keys_they_bring() -> None:
    prefix = tuple(range(4000))
    scheduler = scheduler_of(budget=4096, prefixes=PrefixCache(300))
    submit(scheduler, request_of([(*prefix, 1)]))
    land(scheduler, scheduler.next_batch(0.0))
    scheduler.shrink(64)
    request = submit(scheduler, request_of([(*prefix, 2, number) for number in range(20)]))
    texts = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        assert batch.tokens <= most_keys(64)
        texts.append(land(scheduler, batch).texts)
    assert texts == [8, 8, 4]
    assert not request.spans


def test_a_text_with_more_keys_than_a_batch_may_have_goes_in_alone() -> None:
    prefix = tuple(range(most_keys(8)))
    scheduler = scheduler_of(budget=len(prefix), prefixes=PrefixCache(3000))
    submit(scheduler, request_of([prefix]))
    land(scheduler, scheduler.next_batch(0.0))
    scheduler.shrink(8)
    submit(scheduler, request_of([(*prefix, 1), (*prefix, 2)]))
    assert [land(scheduler, scheduler.next_batch(0.0)).texts for _ in range(2)] == [1, 1]
    assert scheduler.next_batch(0.0) is None


# Faults.


def test_a_part_that_is_no_good_sends_the_text_whole() -> None:
    """In parts again it would be no good again, and never end."""
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=8, prefixes=cache)
    submit(scheduler, request_of([LONG]))
    assert parts_of(scheduler, keep=False) == [(8, True), (len(LONG), False)]
    cache.check(idle=True)


def test_a_batch_that_fails_computes_its_text_whole() -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=8, prefixes=cache)
    submit(scheduler, request_of([LONG]))
    land(scheduler, scheduler.next_batch(0.0))
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    assert batch.segments[0].is_unfinished
    scheduler.failed(batch)
    assert not batch.uncached().uses_prefixes
    assert not batch.uncached().segments[0].is_unfinished
    assert batch.uncached().tokens == batch.uncached().computed_tokens == len(LONG)
    scheduler.completed(batch.uncached(), 0.0, keep=True)
    assert scheduler.next_batch(0.0) is None
    cache.check(idle=True)


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_request_that_ends_between_parts_lets_go_of_its_blocks(in_flight: bool) -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=8, prefixes=cache)
    request = submit(scheduler, request_of([LONG]))
    first = scheduler.next_batch(0.0)
    assert first is not None
    if in_flight:
        scheduler.forget(request)
    scheduler.completed(first, 0.0, keep=True)
    if not in_flight:
        assert cache.stats.blocks_in_use == 2
        scheduler.forget(request)
    assert scheduler.next_batch(0.0) is None
    cache.check(idle=True)


def test_two_long_texts_that_begin_alike_share_their_parts() -> None:
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    submit(scheduler, request_of([LONG, (*LONG[:-1], 7)]))
    tokens = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        tokens.append(land(scheduler, batch).computed_tokens)
    assert sum(tokens) <= len(LONG) + 2


# Whole after all.


def test_a_batch_that_saves_little_is_computed_whole_and_keeps_nothing() -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=100, prefixes=cache, min_saved_tokens=13)
    submit(scheduler, request_of([LONG, LONG[:12]]))
    batch = planned(scheduler)
    assert (batch.computed_tokens, batch.uses_prefixes) == (42, False)
    cache.check(idle=True)
    scheduler.completed(batch, 0.0, keep=True)
    submit(scheduler, request_of([LONG, LONG[:20], (7, 8)]))
    assert planned(scheduler).uses_prefixes


def test_a_batch_is_not_computed_whole_where_that_is_more_than_it_may_hold() -> None:
    scheduler = scheduler_of(
        budget=32, prefixes=PrefixCache(64, block_tokens=4), min_saved_tokens=100
    )
    submit(scheduler, request_of([LONG[:n] for n in (28, 27, 26, 25)]))
    batch = planned(scheduler)
    assert batch.tokens > 32 >= batch.computed_tokens


class CountedCache(PrefixCache):
    claims = 0

    def claim(self, *args: Any, **options: Any) -> BlockAllocation:
        self.claims += 1
        return super().claim(*args, **options)


def test_texts_with_nothing_in_common_are_looked_up_ever_more_seldom() -> None:
    cache = CountedCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=40, prefixes=cache, min_saved_tokens=10)
    for number in range(200):
        submit(scheduler, request_of([tuple(range(100 * number, 100 * number + 20))]))
        land(scheduler, planned(scheduler))
    assert cache.claims <= 12
    cache.check(idle=True)


def test_what_is_worth_looking_up_is_looked_up_whatever_was_before() -> None:
    cache = CountedCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=40, prefixes=cache, min_saved_tokens=10)
    for number in range(60):
        submit(scheduler, request_of([tuple(range(100 * number, 100 * number + 20))]))
        land(scheduler, planned(scheduler))
    prompt = tuple(range(9000, 9016))
    texts = [(*prompt, number) for number in range(3)]
    submit(scheduler, request_of(texts, shared_tokens=16))
    batch = land(scheduler, planned(scheduler))
    assert (batch.texts, batch.computed_tokens) == (3, 16 + 3)
    submit(scheduler, request_of([tuple(range(7000, 7100))]))  # longer than a batch
    assert [segment.until for segment in land(scheduler, planned(scheduler)).segments] == [40]
    while (rest := scheduler.next_batch(0.0)) is not None:
        land(scheduler, rest)
    cache.check(idle=True)
    scheduler.check_idle()


# Texts that have nothing but their prompt in the cache.

PROMPT = tuple(range(500, 506))


def asked(count: int, *, first: int = 0, prompt: Ids = PROMPT) -> list[Ids]:
    return [(*prompt, 9000 + first + number) for number in range(count)]


def knowing_the_prompt(**options: Any) -> tuple[Scheduler, CountedCache]:
    cache = CountedCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=100, prefixes=cache, **options)
    submit(scheduler, request_of(asked(1, first=-1), shared_tokens=6, is_pinned=True))
    land(scheduler, planned(scheduler))
    cache.claims = 0
    return scheduler, cache


def test_queries_after_one_prompt_are_looked_up_once() -> None:
    scheduler, cache = knowing_the_prompt()
    before = cache.stats
    request = submit(scheduler, request_of(asked(40), shared_tokens=6, is_pinned=True))
    batch = planned(scheduler)
    assert (batch.texts, batch.computed_tokens, batch.cached_tokens) == (40, 40, 240)
    assert cache.claims == 1
    assert cache.stats.looked_up_tokens - before.looked_up_tokens == 40 * 7
    assert cache.stats.hit_tokens - before.hit_tokens == 40 * 6
    scheduler.completed(batch, 0.0, keep=True)
    assert not request.spans
    assert cache.stats.blocks_pinned == cache.stats.blocks_in_use == 2
    cache.check(idle=True)


def test_a_text_that_begins_otherwise_does_not_go_on_from_the_others_prompt() -> None:
    scheduler, cache = knowing_the_prompt()
    texts = [*asked(3), *asked(1, prompt=(*PROMPT[:5], 7)), *asked(3, first=3)]
    submit(scheduler, request_of(texts, shared_tokens=6))
    batch = planned(scheduler)
    (segment,) = batch.segments
    cached = [claim.cached_tokens for claim in segment.claims or ()]
    assert cached == [6, 6, 6, 4, 6, 6, 6]
    assert batch.computed_tokens == 6 + 3
    assert cache.claims == 3
    land(scheduler, batch)
    cache.check(idle=True)


def test_a_text_with_a_block_of_its_own_is_looked_up_by_itself() -> None:
    scheduler, cache = knowing_the_prompt()
    long = [(*text, *range(number, number + 4)) for number, text in enumerate(asked(2, first=50))]
    submit(scheduler, request_of([*long, *asked(5)], shared_tokens=6))
    batch = planned(scheduler)
    assert (batch.texts, cache.claims) == (7, 3)
    land(scheduler, batch)
    submit(scheduler, request_of([(*long[0], 1)], shared_tokens=6))
    assert planned(scheduler).cached_tokens == 10, "its own block was remembered"


def test_texts_that_share_a_claim_stay_within_the_batch() -> None:
    scheduler, cache = knowing_the_prompt(max_prefixed_tokens=8)
    submit(scheduler, request_of(asked(20), shared_tokens=6))
    texts = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        texts.append(land(scheduler, batch).texts)
    assert texts == [8, 8, 4]
    cache.check(idle=True)


def test_in_flight_texts_among_texts_that_share_a_claim_are_computed_once() -> None:
    scheduler, cache = knowing_the_prompt()
    submit(scheduler, request_of([*asked(3), *asked(3), *asked(2, first=3)], shared_tokens=6))
    batch = planned(scheduler)
    assert (batch.texts, batch.computed_tokens, cache.claims) == (5, 5, 1)
    duplicates = scheduler.completed(batch, 0.0, keep=True)
    assert [len(texts) for texts in duplicates.values()] == [1, 1, 1]
    cache.check(idle=True)


def test_a_shared_claim_that_saves_too_little_leaves_nothing_behind() -> None:
    scheduler, cache = knowing_the_prompt(min_saved_tokens=100)
    before = cache.stats
    submit(scheduler, request_of(asked(4), shared_tokens=6))
    batch = planned(scheduler)
    assert (batch.texts, batch.computed_tokens, batch.uses_prefixes) == (4, 28, False)
    assert cache.stats == before
    cache.check(idle=True)


@pytest.mark.parametrize("fails", [False, True])
def test_a_batch_with_a_shared_claim_that_is_no_good_lets_go_of_it(fails: bool) -> None:
    scheduler, cache = knowing_the_prompt()
    submit(scheduler, request_of(asked(4), shared_tokens=6))
    batch = planned(scheduler)
    if fails:
        scheduler.failed(batch)
    else:
        scheduler.completed(batch, 0.0, keep=False)
    cache.check(idle=True)


# What is pinned.


def test_only_a_text_that_still_has_its_prompt_pins_it() -> None:
    cache = PrefixCache(64, block_tokens=4)
    scheduler = scheduler_of(budget=64, prefixes=cache)
    cut = request_of([LONG], shared_tokens=6, is_pinned=True)
    cut.truncated[:] = True
    submit(scheduler, cut)
    land(scheduler, scheduler.next_batch(0.0))
    assert cache.stats.blocks_pinned == 0
    submit(scheduler, request_of([LONG], shared_tokens=6, is_pinned=True))
    land(scheduler, scheduler.next_batch(0.0))
    assert cache.stats.blocks_pinned == 2


def test_a_part_of_bulk_counts_as_bulk() -> None:
    scheduler = scheduler_of(budget=8, prefixes=PrefixCache(64, block_tokens=4))
    submit(scheduler, request_of([LONG]))
    batch = planned(scheduler)
    assert batch.has_bulk
    assert batch.texts_at(Priority.BULK) == 0
    scheduler.record(batch, 0.5)
    assert scheduler._bulk_speed.tokens_in(10.0) == 160
