"""How large a batch the memory of a GPU allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from millpond import InvalidOption
from millpond.checkpoint.resolve import resolve_checkpoint
from millpond.checkpoint.spec import read_spec
from millpond.config import EngineConfig
from millpond.model.build import load_models
from millpond.runner.cuda import memory_profile as cuda_memory
from millpond.runner.cuda.memory_profile import (
    FEWEST_ROWS,
    MOST_ROWS,
    probe_of,
    rows_within,
    tokens_that_fit,
)
from millpond.runner.memory import DeviceMemory, MemoryBudget

GB = 10**9
MEMORY = DeviceMemory(free=40 * GB, total=80 * GB, weights=GB)


@pytest.mark.parametrize(
    ("budget", "room"),
    [
        (MemoryBudget(MEMORY), 20 * GB),  # half of what is free
        (MemoryBudget(MEMORY, share=0.5), 39 * GB),
        (MemoryBudget(MEMORY, share=1.0), 40 * GB),  # others hold the rest
        (MemoryBudget(MEMORY, size=3 * GB), 2 * GB),
    ],
)
def test_the_room_for_batches_is_what_the_budget_leaves(budget: MemoryBudget, room: int) -> None:
    assert budget.room_for_batches() == room


@pytest.mark.parametrize(
    "budget", [MemoryBudget(MEMORY, share=0.01), MemoryBudget(MEMORY, size=GB)]
)
def test_a_budget_below_the_weights_is_refused(budget: MemoryBudget) -> None:
    with pytest.raises(InvalidOption, match="the weights alone take 1,000,000,000"):
        budget.room_for_batches()


def test_rows_are_as_many_as_fit_and_never_too_few() -> None:
    assert rows_within(1_000_000, 100) == 10_000
    assert rows_within(1000, 100) == FEWEST_ROWS
    assert rows_within(1000, 0) == MOST_ROWS


CUDA = torch.device("cuda", 0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A GPU on which a row of any pipeline takes 1 kB; the models that were asked."""
    asked: list[Any] = []

    def bytes_per_row(pipeline: Any, device: torch.device, captures: int) -> float:
        asked.append(pipeline)
        return 1000.0

    monkeypatch.setattr(cuda_memory, "_bytes_per_row", bytes_per_row)
    return asked


def asked_for(wanted: int | None, most: int) -> dict[str, Any]:
    """What the configuration says, or what suits a GPU."""
    return {"wanted": wanted or most, "is_fixed": wanted is not None, "reserved": 0}


MODEL, TABLE = SimpleNamespace(is_static=False), SimpleNamespace(is_static=True)


@pytest.mark.parametrize(
    ("budget", "wanted", "tokens"),
    [
        (MemoryBudget(MEMORY), None, 32_767),  # 20 million would fit
        (MemoryBudget(MEMORY, size=GB + 10**7), None, 9_999),
        (MemoryBudget(MEMORY, size=GB + 10**7), 50_000, 9_999),
        (MemoryBudget(MEMORY, size=GB + 10**7), 100, 100),
        (MemoryBudget(MEMORY), 50_000_000, 50_000_000),  # nobody said how much
    ],
)
def test_a_batch_is_as_large_as_wanted_and_as_the_memory_allows(
    told: list[Any], budget: MemoryBudget, wanted: Any, tokens: int
) -> None:
    models: Any = [MODEL, TABLE]
    found = tokens_that_fit(models, CUDA, budget, **asked_for(wanted, 32_767))
    assert found == tokens
    assert told in ([], [MODEL])


@pytest.mark.parametrize("wanted", [None, 100])
@pytest.mark.parametrize("pipeline", [MODEL, TABLE])
def test_a_budget_is_checked_whatever_the_model_and_the_batch(
    told: list[Any], wanted: Any, pipeline: Any
) -> None:
    budget = MemoryBudget(MEMORY, size=GB)
    with pytest.raises(InvalidOption, match="the weights alone take"):
        tokens_that_fit([pipeline], CUDA, budget, **asked_for(wanted, 10))


@pytest.mark.parametrize("name", ["bert", "mpnet", "convbert", "qwen3"])
def test_every_kind_of_model_has_a_pass_to_measure(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    config = EngineConfig(model=str(checkpoint(name)), device="cpu", dtype="float32")
    cpu = torch.device("cpu")
    (pipeline,) = load_models(read_spec(resolve_checkpoint(config.model)), config, cpu)
    forward, rows = probe_of(pipeline, cpu)
    with torch.inference_mode():
        vectors = forward()
    longest = pipeline.tokenizer.max_length
    assert longest is not None
    assert (len(vectors), rows) == (4096 // longest, 4096 // longest * longest)
