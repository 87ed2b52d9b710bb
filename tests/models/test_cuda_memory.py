"""How large a batch the memory of a GPU allows."""

from __future__ import annotations

import pytest

from millpond import InvalidOption
from millpond.models.cuda_memory import COPIES, FEWEST_ROWS, rows_within
from millpond.models.memory import DeviceMemory, MemoryBudget

GB = 10**9
MEMORY = DeviceMemory(free=40 * GB, total=80 * GB, weights=GB)


@pytest.mark.parametrize(
    ("budget", "room"),
    [
        (MemoryBudget(), 20 * GB),  # half of what is free
        (MemoryBudget(share=0.5), 39 * GB),
        (MemoryBudget(share=1.0), 40 * GB),  # others hold the rest
        (MemoryBudget(size=3 * GB), 2 * GB),
    ],
)
def test_the_room_for_batches_is_what_the_budget_leaves(budget: MemoryBudget, room: int) -> None:
    assert budget.room_for_batches(MEMORY) == room


@pytest.mark.parametrize("budget", [MemoryBudget(share=0.01), MemoryBudget(size=GB)])
def test_a_budget_below_the_weights_is_refused(budget: MemoryBudget) -> None:
    with pytest.raises(InvalidOption, match="the weights alone take 1,000,000,000"):
        budget.room_for_batches(MEMORY)


def test_rows_are_as_many_as_fit_twice_and_never_too_few() -> None:
    assert rows_within(1_000_000, 100) == 1_000_000 // (100 * COPIES)
    assert rows_within(1000, 100) == FEWEST_ROWS
