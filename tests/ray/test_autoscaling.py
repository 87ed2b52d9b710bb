"""How many replicas a queue of tokens asks for."""

from __future__ import annotations

import pytest

from millpond.ray.autoscaling import replicas_for


@pytest.mark.parametrize(
    ("queued", "now", "wanted"),
    [
        (0, 1, 1),
        (1000, 1, 1),
        (1001, 1, 2),
        (5500, 2, 6),
        (0, 8, 1),
        (2000, 3, 3),  # two would be at the target; three stay
        (1500, 3, 2),  # three quarters of the target of two
        (1400, 3, 2),
    ],
)
def test_each_has_at_most_the_target(queued: int, now: int, wanted: int) -> None:
    assert replicas_for(queued, target=1000, now=now) == wanted


@pytest.mark.parametrize("now", range(1, 9))
def test_a_steady_queue_asks_for_a_steady_number(now: int) -> None:
    for queued in range(0, 10_000, 7):
        settled = replicas_for(queued, target=1000, now=now)
        assert replicas_for(queued, target=1000, now=settled) == settled
