"""Batches that ran set the size of short ones, and how often prefixes are looked up."""

from __future__ import annotations

from millpond.scheduler.feedback import (
    FIRST_SHORT_BATCH_TOKENS,
    SPEED_MEMORY,
    BulkSpeed,
    LookupBackoff,
)


def skipped(lookups: LookupBackoff) -> int:
    count = 0
    while lookups.may_skip():
        count += 1
    return count


def test_the_batches_that_do_without_double_up_to_a_limit() -> None:
    lookups, counts = LookupBackoff(), []
    for _ in range(9):
        lookups.note(pays=False)
        counts.append(skipped(lookups))
    assert counts == [0, 1, 3, 7, 15, 31, 31, 31, 31]


def test_a_batch_that_saves_enough_has_every_text_looked_up_again() -> None:
    lookups = LookupBackoff()
    for pays in (False, False, False, True):
        lookups.note(pays)
    assert skipped(lookups) == 0
    assert repr(lookups) == "LookupBackoff(misses_in_a_row=0, batches_to_skip=0)"


def test_a_short_batch_is_what_runs_in_its_time() -> None:
    speed = BulkSpeed(fewest_tokens=1000)
    assert speed.tokens_in(0.01) == FIRST_SHORT_BATCH_TOKENS
    speed.record(tokens=40_000, seconds=1.0)
    assert speed.tokens_in(0.1) == 4000
    assert speed.tokens_in(0.001) == 1000
    assert repr(speed) == "BulkSpeed(tokens=40000, seconds=1.000)"


def test_the_last_batches_count_most() -> None:
    speed = BulkSpeed(fewest_tokens=1)
    for tokens in (1000, 3000):
        speed.record(tokens, seconds=1.0)
    assert speed.tokens_in(1.0) == int((SPEED_MEMORY * 1000 + 3000) / (SPEED_MEMORY + 1))
