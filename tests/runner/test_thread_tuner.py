"""Which count of threads is taken: the one that was quicker of late."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from millpond.runner.thread_tuner import FIRST_PAUSE, KEPT, LONGEST_PAUSE, ThreadTuner


def passes(choice: ThreadTuner, seconds: dict[int, float], number: int) -> list[int]:
    """Run so many passes that take as long as this by their counts of threads."""
    counts = []
    for _ in range(number):
        counts.append(choice.next())
        choice.took(counts[-1], seconds[counts[-1]])
    return counts


def test_both_are_timed_and_then_the_quicker_one_is_taken() -> None:
    choice = ThreadTuner()
    assert passes(choice, {1: 3.0, 2: 2.0}, 2 * KEPT) == [1] * KEPT + [2] * KEPT
    assert passes(choice, {1: 3.0, 2: 2.0}, FIRST_PAUSE - 1) == [2] * (FIRST_PAUSE - 1)
    assert "quicker=2" in repr(choice)


def test_the_slower_one_is_tried_ever_more_seldom() -> None:
    choice = ThreadTuner()
    number = 4 * LONGEST_PAUSE
    tried = [i for i, n in enumerate(passes(choice, {1: 3.0, 2: 12.0}, number)) if n == 2]
    trials = tried[KEPT:]
    gaps = [later - earlier for earlier, later in pairwise(trials)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 2 * FIRST_PAUSE
    assert max(gaps) == LONGEST_PAUSE


def test_one_that_becomes_slow_is_left_after_a_few_passes() -> None:
    choice = ThreadTuner()
    passes(choice, {1: 3.0, 2: 2.0}, 50)
    counts = Counter(passes(choice, {1: 3.0, 2: 12.0}, 100))
    assert counts[2] <= KEPT // 2 + 1 + 3  # until the median shows it, and trials


def test_one_that_becomes_quick_again_is_found() -> None:
    choice = ThreadTuner()
    passes(choice, {1: 3.0, 2: 12.0}, 2 * KEPT)
    assert passes(choice, {1: 3.0, 2: 2.0}, 1000)[-20:].count(2) >= 19


def test_one_slow_pass_changes_nothing() -> None:
    choice = ThreadTuner()
    passes(choice, {1: 3.0, 2: 2.0}, 2 * KEPT)
    choice.took(2, 50.0)
    assert choice.next() == 2
