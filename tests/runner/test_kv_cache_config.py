"""How large a prefix cache gets: the budget's arithmetic, with devices made up for it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from millpond import InvalidOption
from millpond.attention.kv_cache import KVCache
from millpond.model.transformer import Transformer
from millpond.model.verify.prefix import PrefixSupport
from millpond.runner.kv_cache_config import BLOCK_TOKENS, FEWEST_BLOCKS, MOST_BLOCKS, KVCacheConfig
from millpond.runner.memory import DeviceMemory, MemoryBudget
from millpond.scheduler.batch_builder import most_keys

CPU = torch.device("cpu")
GIB = 1 << 30
NOTHING_KNOWN = MemoryBudget(DeviceMemory(0, 0, 0))


def small_cache(elements: int = 1024) -> KVCache:
    """A cache of one layer, of two times so many float16 numbers a token."""
    cache = KVCache(2, dtype=torch.float16, device=CPU)
    rows = torch.zeros(1, 1, elements, dtype=torch.float16)
    cache.write(0, torch.tensor([0]), rows, rows)
    return cache


def pipeline_with(cache: KVCache | None) -> Any:
    support = PrefixSupport(reason="for the sake of it", cache=cache)
    return SimpleNamespace(prefixes=support, encoder=None)


def room(memory: DeviceMemory, cache: KVCache, **limits: Any) -> KVCacheConfig | None:
    return KVCacheConfig.of([pipeline_with(cache)], MemoryBudget(memory, **limits))


@pytest.mark.parametrize(
    ("memory", "limits", "size"),
    [
        (DeviceMemory(10 * GIB, 80 * GIB, 2 * GIB), {}, GIB),
        (DeviceMemory(70 * GIB, 80 * GIB, 2 * GIB), {"share": 0.5}, 19 * GIB),
        (DeviceMemory(70 * GIB, 80 * GIB, 2 * GIB), {"size": 4 * GIB}, GIB),
        (DeviceMemory(6 * GIB, 80 * GIB, 2 * GIB), {"share": 0.9}, 3 * GIB),
        (DeviceMemory(0, 0, 2 * GIB), {"size": 4 * GIB}, GIB),
    ],
)
def test_a_guest_takes_a_tenth_of_what_is_free_and_a_server_half_of_what_it_may(
    memory: DeviceMemory, limits: dict[str, Any], size: int
) -> None:
    cache = small_cache(16384)
    assert cache.bytes_per_slot == 64 * 1024
    found = room(memory, cache, **limits)
    assert found is not None
    blocks = size // (64 * 1024 * BLOCK_TOKENS)
    assert (found.budget.blocks, found.budget.block_tokens) == (blocks, BLOCK_TOKENS)
    assert found.budget.bytes == blocks * BLOCK_TOKENS * 64 * 1024 <= size


def test_a_budget_that_the_weights_fill_is_refused() -> None:
    memory = DeviceMemory(70 * GIB, 80 * GIB, 4 * GIB)
    with pytest.raises(InvalidOption, match=r"weights alone take 4,294,967,296"):
        room(memory, small_cache(), size=4 * GIB)


def test_a_share_of_what_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"cannot be asked for here; set memory_bytes"):
        room(DeviceMemory(0, 0, GIB), small_cache(), share=0.5)


@pytest.mark.parametrize(
    ("blocks", "gets"),
    [
        (FEWEST_BLOCKS - 1, None),
        (FEWEST_BLOCKS, FEWEST_BLOCKS),
        (MOST_BLOCKS + 100, MOST_BLOCKS),
        (0, None),
    ],
)
def test_the_fewest_blocks_that_are_worth_it_and_the_most(
    caplog: pytest.LogCaptureFixture,
    blocks: int,
    gets: int | None,
) -> None:
    cache = small_cache()
    free = 10 * blocks * BLOCK_TOKENS * cache.bytes_per_slot
    with caplog.at_level(logging.INFO, "millpond"):
        found = room(DeviceMemory(free, 2 * free, 0), cache)
    assert (None if found is None else found.budget.blocks) == gets
    assert ("no prefix cache" in caplog.text) == (gets is None)


def test_a_model_whose_prefixes_cannot_be_cached_takes_nothing() -> None:
    assert KVCacheConfig.of([pipeline_with(None)], NOTHING_KNOWN) is None
    two = [pipeline_with(small_cache()), pipeline_with(small_cache())]
    assert KVCacheConfig.of(two, NOTHING_KNOWN) is None


def test_what_is_allocated_is_what_was_planned() -> None:
    cache = small_cache()
    block_bytes = BLOCK_TOKENS * cache.bytes_per_slot
    found = room(DeviceMemory(1000 * block_bytes, GIB, 0), cache)
    assert found is not None
    tensors = found.allocate()
    assert tensors.slots == 100 * BLOCK_TOKENS
    assert tensors.slots * tensors.bytes_per_slot == found.budget.bytes == 100 * block_bytes
    assert tensors.shapes == cache.shapes


def test_room_is_reserved_for_what_a_batch_reads_too() -> None:
    """A small cache in its layers: one layer's keys and values are read at a time."""
    cache = small_cache()
    found = room(DeviceMemory(GIB, GIB, 0), cache)
    assert found is not None
    read = found.reserved(100_000) - found.budget.bytes
    assert read == 2 * most_keys(100_000) * cache.bytes_per_slot


class Decoder(Transformer):
    """One layer of so many weights, and a table of a million."""

    def __init__(self, weights: int) -> None:
        table = nn.Embedding(1000, 1000, device="meta")
        model = nn.ModuleList([table, nn.Linear(weights // 1000, 1000, bias=False, device="meta")])
        model.get_input_embeddings = lambda: table
        self.model = model  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("saved_tokens", "weights", "tokens"),
    [
        (0, None, 0),
        (0, 16_000_000, 0),
        (2048, None, 2048),
        (2048, 1_000_000, 2048),
        (2048, 16_000_000, 2048),
        (2048, 40_000_000, 819),
        (2048, 1_600_000_000, 256),
    ],
)
def test_batches_that_are_quicker_whole_are_told_by_the_device_and_the_model(
    saved_tokens: int, weights: int | None, tokens: int
) -> None:
    models = [pipeline_with(small_cache())]
    models[0].encoder = None if weights is None else Decoder(weights)
    budget = MemoryBudget(DeviceMemory(GIB, GIB, 0))
    found = KVCacheConfig.of(models, budget, saved_tokens=saved_tokens, max_batch_tokens=77)
    assert found is not None
    assert found.budget.min_saved_tokens == tokens
    assert found.budget.max_batch_tokens == 77
