"""Memory for keys and values: what was written to a slot is read from it, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from millpond.attention.kv_cache import KVCache, LayerShape

CPU = torch.device("cpu")


def rows(count: int, heads: int, size: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, heads, size, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_slots_are_read_in_any_order_and_as_often_as_wanted(dtype: torch.dtype) -> None:
    cache = KVCache(20, dtype=dtype, device=CPU)
    slots = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:12]
    keys, values = rows(12, 3, 8, 2, dtype), rows(12, 3, 4, 3, dtype)
    cache.write(0, slots, keys, values)
    wanted = torch.tensor([5, 0, 5, 11, 3])
    found = cache.read(0, slots[wanted])
    assert torch.equal(found[0], keys[wanted])
    assert torch.equal(found[1], values[wanted])
    assert found[0].dtype == dtype


def test_a_slot_holds_what_was_written_last_and_others_what_they_held() -> None:
    cache = KVCache(8, dtype=torch.float32, device=CPU)
    first, second = (rows(4, 2, 8, seed, torch.float32) for seed in (1, 2))
    cache.write(0, torch.arange(4), first, first)
    cache.write(0, torch.tensor([1, 6]), second[:2], second[:2])
    keys, _ = cache.read(0, torch.tensor([0, 1, 2, 3, 6]))
    assert torch.equal(keys, torch.stack([first[0], second[0], *first[2:], second[1]]))


def test_layers_have_shapes_and_content_of_their_own() -> None:
    cache = KVCache(4, dtype=torch.float32, device=CPU)
    slots = torch.arange(4)
    wide, narrow = rows(4, 4, 16, 1, torch.float32), rows(4, 1, 8, 2, torch.float32)
    cache.write(0, slots, wide, wide)
    cache.write(7, slots, narrow, wide[:, :1])
    assert cache.shapes == {0: LayerShape(4, 16, 16), 7: LayerShape(1, 8, 16)}
    assert cache.bytes_per_slot == 4 * (4 * 32 + 24)
    assert torch.equal(cache.read(0, slots)[0], wide)
    assert torch.equal(cache.read(7, slots)[0], narrow)


def test_one_like_it_has_its_layers_and_memory_of_its_own() -> None:
    small = KVCache(4, dtype=torch.bfloat16, device=CPU)
    ones = torch.ones(4, 2, 8, dtype=torch.bfloat16)
    small.write(3, torch.arange(4), ones, ones)
    large = small.like(100)
    assert (large.slots, large.dtype, large.shapes) == (100, torch.bfloat16, small.shapes)
    assert large.bytes_per_slot == small.bytes_per_slot == 2 * 2 * 16
    large.write(3, torch.tensor([99, 0]), ones[:2] * 2, ones[:2] * 2)
    assert torch.equal(small.read(3, torch.arange(4))[0], ones)


def test_it_says_how_large_it_is() -> None:
    cache = KVCache(1 << 15, dtype=torch.float32, device=CPU)
    assert repr(cache) == "KVCache(slots=32768, layers=0, MiB=0)"
    cache.write(0, torch.arange(1), torch.ones(1, 2, 8), torch.ones(1, 2, 8))
    assert repr(cache) == "KVCache(slots=32768, layers=1, MiB=4)"
