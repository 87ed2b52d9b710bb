"""The sizes a batch with prefixes may have on a GPU, and that it is the same batch in one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from replayed_graphs import capture
from torch import Tensor

from millpond.attention import prefix as prefix_attention
from millpond.attention.kv_cache import KVCache
from millpond.attention.prefix import PrefixedSequences, PrefixIndex, PrefixSlots
from millpond.model.pooling_model import PooledRows
from millpond.runner.cuda.bucketed_forward import MOST_RECORDED_ROWS, BucketedForward
from millpond.runner.cuda.pinned_buffers import PinnedBuffers
from millpond.runner.cuda.prefix_buckets import prefix_bucket_for

CPU = torch.device("cpu")
SLOTS = 300
TEXTS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 90)), min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_attention, "uses_varlen", lambda *_: True)


def cache_of_numbers() -> KVCache:
    """Slot `n` holds `1000 + n`, so that every token of a prefix can be told from any other."""
    cache = KVCache(SLOTS, dtype=torch.float32, device=CPU)
    numbers = (1000 + torch.arange(SLOTS + 1.0)).view(-1, 1, 1)
    cache.write(0, torch.arange(SLOTS + 1), numbers, numbers)
    return cache


class FakePipeline:
    """A text's vector: the sum of what its tokens may see, and of that times places."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(pad_id=9, max_length=256)
        self.runs = 0

    def packed(
        self, ids: Tensor, positions: Tensor, sequences: PrefixedSequences, texts: PooledRows
    ) -> Tensor:
        self.runs += 1
        joined = sequences.joined
        assert joined is not None
        assert len(joined.query_boundaries) == len(joined.key_boundaries) == len(texts.starts) + 1
        assert joined.query_boundaries.dtype == joined.key_boundaries.dtype == torch.int32
        assert torch.equal(joined.query_boundaries[:-1].long(), texts.starts)
        own = (ids * 100 + positions).float().view(-1, 1, 1)
        rows, slots = own[sequences.rows], sequences.written
        sequences.cache.write(0, slots, rows, rows)
        seen = torch.cat([sequences.cache.read(0, sequences.read)[0], own])[joined.order].view(-1)
        sums = torch.cat([seen.new_zeros(1), seen]).double().cumsum(0)
        edges = joined.key_boundaries.long()
        whole = sums[edges[1:]] - sums[edges[:-1]]
        return torch.stack([whole, texts.lengths.double(), texts.prompt_lengths.double()], dim=1)


def forward_on(pipeline: Any, cache: KVCache) -> BucketedForward:
    return BucketedForward(
        pipeline,
        device=CPU,
        buffers=PinnedBuffers(pinned=False),
        capture=capture,
        most_tokens=32_767,
        cache=cache,
    )


def batch_of(texts: list[tuple[int, int]], seed: int = 0) -> dict[str, Any]:
    """Texts of `(computed, cached)` tokens; the first keeps what it computes, where it can."""
    random = np.random.default_rng(seed)
    lengths, prefixes = np.array(texts).T
    read = [random.permutation(SLOTS // 2)[:prefix] for prefix in prefixes]
    kept = np.arange(lengths[0])
    slots = PrefixSlots(prefixes, np.concatenate(read), kept, SLOTS // 2 + kept)
    positions = [np.arange(prefix, prefix + length) for length, prefix in texts]
    return {
        "ids": random.integers(10, 99, int(lengths.sum())),
        "positions": np.concatenate(positions),
        "prompt_lengths": lengths // 2,
        "index": PrefixIndex.of(lengths, slots, cache_of_numbers()),
        "read": read,
    }


def expected(batch: dict[str, Any], texts: list[tuple[int, int]]) -> Tensor:
    own = np.split(batch["ids"] * 100 + batch["positions"], np.cumsum([n for n, _ in texts])[:-1])
    rows = [
        (computed.sum() + (1000 + read).sum(), len(computed), len(computed) // 2)
        for computed, read in zip(own, batch["read"], strict=True)
    ]
    return torch.tensor(rows).double()


def vectors(forward: BucketedForward, batch: dict[str, Any]) -> Tensor:
    run = forward.run_prefixed(
        batch["ids"], batch["positions"], batch["prompt_lengths"], batch["index"]
    )
    return run.vectors[: len(batch["prompt_lengths"])].clone()


@given(TEXTS, st.integers(0, 9))
def test_a_batch_in_a_bucket_sees_its_own_prefixes_and_no_others(
    texts: list[tuple[int, int]], seed: int
) -> None:
    batch = batch_of(texts, seed)
    cache = cache_of_numbers()
    found = vectors(forward_on(FakePipeline(), cache), batch)
    assert torch.equal(found, expected(batch, texts))


def test_batches_of_one_bucket_are_replayed_each_with_its_own_texts() -> None:
    cache = cache_of_numbers()
    forward = forward_on(FakePipeline(), cache)
    for seed in range(5):
        texts = [(10 + seed, 40), (3, 40), (2, 0)]
        batch = batch_of(texts, seed)
        assert torch.equal(vectors(forward, batch), expected(batch, texts))
        kept = batch["ids"][: 10 + seed] * 100 + batch["positions"][: 10 + seed]
        slots = SLOTS // 2 + torch.arange(10 + seed)
        assert cache.read(0, slots)[0].view(-1).tolist() == kept.tolist()
    assert "graphs=1" in repr(forward)


def test_what_fills_a_bucket_writes_to_the_null_slot_only() -> None:
    cache, untouched = cache_of_numbers(), cache_of_numbers()
    texts = [(5, 7), (4, 0)]
    vectors(forward_on(FakePipeline(), cache), batch_of(texts))
    others = torch.tensor([*range(SLOTS // 2), *range(SLOTS // 2 + 5, SLOTS)])
    assert torch.equal(cache.read(0, others)[0], untouched.read(0, others)[0])
    null = torch.tensor([cache.null_slot])
    assert not torch.equal(cache.read(0, null)[0], untouched.read(0, null)[0])


def test_a_large_batch_runs_plainly() -> None:
    forward = forward_on(FakePipeline(), cache_of_numbers())
    texts = [(100, 40)] * (MOST_RECORDED_ROWS // 100 + 1)
    for seed in range(3):
        batch = batch_of(texts, seed)
        assert torch.equal(vectors(forward, batch), expected(batch, texts))
    assert "graphs=0" in repr(forward)


@given(TEXTS)
def test_a_bucket_has_room_for_the_batch(texts: list[tuple[int, int]]) -> None:
    index = batch_of(texts)["index"]
    bucket = prefix_bucket_for(index)
    tokens, keys = sum(n for n, _ in texts), sum(n + m for n, m in texts)
    assert tokens < bucket.rows, "empty texts need a row to point at"
    assert keys <= bucket.keys
    assert len(texts) <= bucket.texts
    assert max(n for n, _ in texts) <= bucket.longest
    assert max(n + m for n, m in texts) <= bucket.longest_key
    assert (len(index.read), len(index.rows)) <= (bucket.read, bucket.kept)


def test_queries_after_one_prompt_have_few_buckets() -> None:
    buckets = set()
    for texts in range(1, 700):
        lengths, nothing = np.full(texts, 11), np.zeros(0, np.int64)
        slots = PrefixSlots(np.full(texts, 40), np.tile(np.arange(40), texts), nothing, nothing)
        buckets.add(prefix_bucket_for(PrefixIndex.of(lengths, slots, cache_of_numbers())))
    assert len(buckets) <= 48
