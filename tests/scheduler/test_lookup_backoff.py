"""Look-ups in a prefix cache become seldom while they find nothing."""

from __future__ import annotations

from millpond.scheduler.lookup_backoff import LookupBackoff


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
