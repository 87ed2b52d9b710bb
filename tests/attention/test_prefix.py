"""Sequences that go on from cached keys and values: against each of them computed whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from millpond.attention import prefix as prefix_attention
from millpond.attention import varlen
from millpond.attention.kv_cache import KVCache
from millpond.attention.packed import AttentionOptions, packed_attention
from millpond.attention.prefix import PrefixedSequences, PrefixIndex, PrefixSlots

HEADS, KV_HEADS, SIZE = 4, 2, 8
LAYER = 5
CPU = torch.device("cpu")


class Text(NamedTuple):
    """A text's own queries, keys and values, `[length, heads, size]`, and how much is cached."""

    query: Tensor
    key: Tensor
    value: Tensor
    cached: int

    @property
    def new(self) -> int:
        return len(self.query) - self.cached


def text_of(length: int, cached: int, seed: int) -> Text:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(length, heads, SIZE, generator=generator)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    return Text(query, key, value, cached)


def beginning_alike(text: Text, length: int, cached: int, seed: int) -> Text:
    """Another text whose first `cached` tokens are those of `text`."""
    other = text_of(length, cached, seed)
    return Text(
        *(
            torch.cat([mine[:cached], theirs[cached:]])
            for mine, theirs in zip(text[:3], other[:3], strict=True)
        ),
        cached,
    )


def whole(text: Text, *, scaling: float, window: int | None) -> Tensor:
    """The formula for all of a text: `[length, heads, size]`."""
    repeats = HEADS // KV_HEADS
    query = text.query.transpose(0, 1)
    key, value = (
        rows.repeat_interleave(repeats, dim=1).transpose(0, 1) for rows in (text.key, text.value)
    )
    distance = torch.arange(len(text.query))[:, None] - torch.arange(len(text.query))[None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    scores = (query @ key.transpose(1, 2) * scaling).masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1)


class Row(NamedTuple):
    """A row of texts, and the slots each has its tokens in."""

    texts: Sequence[Text]
    slots: Sequence[Sequence[int]]
    kept: Sequence[bool]
    """Whether the tokens a text computes are written to its slots."""


def slots_of(row: Row) -> PrefixSlots:
    starts = np.cumsum([0, *(text.new for text in row.texts)])
    rows, written, read = [], [], []
    for text, slots, start, kept in zip(row.texts, row.slots, starts, row.kept, strict=False):
        read += slots[: text.cached]
        if kept:
            rows += range(start, start + text.new)
            written += slots[text.cached : len(text.query)]
    lengths = np.array([text.cached for text in row.texts])
    return PrefixSlots(lengths, *(np.array(each, dtype=np.int64) for each in (read, rows, written)))


def attended(row: Row, cache: KVCache, **options: Any) -> list[Tensor]:
    """What the one attention function gives, text by text."""
    module = nn.Module()
    module.layer_idx = LAYER
    rows = [torch.cat([text[i][text.cached :] for text in row.texts]) for i in range(3)]
    lengths = np.array([text.new for text in row.texts])
    index = PrefixIndex.of(lengths, slots_of(row), cache)
    sequences = PrefixedSequences.of(index, cache)
    found, weights = packed_attention(
        module,
        *(each.transpose(0, 1).unsqueeze(0) for each in rows),
        None,
        packed_sequences=sequences,
        scaling=options["scaling"],
        sliding_window=options["window"],
    )
    assert weights is None
    return list(torch.split(found[0], lengths.tolist()))


def check(row: Row, cache: KVCache, **options: Any) -> None:
    for found, text in zip(attended(row, cache, **options), row.texts, strict=True):
        expected = whole(text, **options)[text.cached :]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def filled_before(texts: Sequence[Text], slots: Sequence[Sequence[int]]) -> KVCache:
    """A cache that holds what is cached of each text, and nonsense everywhere else."""
    cache = KVCache(400, dtype=torch.float32, device=CPU)
    nonsense = torch.full((400, KV_HEADS, SIZE), torch.nan)
    cache.write(LAYER, torch.arange(400), nonsense, nonsense)
    for text, own in zip(texts, slots, strict=True):
        if text.cached:
            place = torch.tensor(own[: text.cached])
            cache.write(LAYER, place, text.key[: text.cached], text.value[: text.cached])
    return cache


# The kernel of a GPU, as its documentation has it.


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """The last query of each sequence stands at its last key; -1 is as far as there is."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    queries, keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (max_q, max_k) == (max(queries), max(keys))
    assert (sum(queries), sum(keys)) == (len(query), len(key))
    assert enable_gqa
    key, value = (x.repeat_interleave(HEADS // x.shape[1], dim=1) for x in (key, value))
    left, right = window_size
    parts = []
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        at = torch.arange(len(k) - len(q), len(k))
        distance = at[:, None] - torch.arange(len(k))[None, :]
        hidden = -distance > right
        if left >= 0:
            hidden |= distance > left
        scores = (q.transpose(0, 1) @ k.permute(1, 2, 0) * scale).masked_fill(hidden, -torch.inf)
        parts.append((scores.softmax(-1) @ v.transpose(0, 1)).transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture(params=["cpu", "varlen"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways: tiles of a CPU, and what a GPU is asked for."""
    if request.param == "varlen":
        monkeypatch.setattr(varlen, "varlen_attn", reference_varlen)
        monkeypatch.setattr(varlen, "_has_option", {"enable_gqa", "window_size"}.__contains__)
        monkeypatch.setattr(prefix_attention, "uses_varlen", lambda *_: True)
    return str(request.param)


WINDOWS = [None, 1, 3, 50]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "lengths",
    [
        [(9, 4)],
        [(9, 0), (9, 0), (4, 0)],
        [(9, 4), (9, 4), (9, 3), (9, 0), (5, 0), (6, 5), (1, 0)],
        [(40, 39), (40, 39), (70, 69), (1, 0), (1, 0)],
        [(100, 20), (80, 0), (90, 64)],
    ],
)
def test_texts_go_on_from_what_was_kept_before(
    kernel: str, lengths: list[tuple[int, int]], window: int | None
) -> None:
    texts = [text_of(*each, seed) for seed, each in enumerate(lengths)]
    places = iter(np.random.default_rng(3).permutation(400).tolist())
    slots = [[next(places) for _ in range(len(text.query))] for text in texts]
    cache = filled_before(texts, slots)
    row = Row(texts, slots, [True] * len(texts))
    check(row, cache, scaling=0.3, window=window)
    for text, own in zip(texts, slots, strict=True):
        keys, values = cache.read(LAYER, torch.tensor(own))
        assert torch.equal(keys, text.key)
        assert torch.equal(values, text.value)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reader_first", [False, True])
def test_a_prefix_that_another_text_of_the_row_writes(
    kernel: str, reader_first: bool, window: int | None
) -> None:
    writer = text_of(20, 0, 1)
    readers = [beginning_alike(writer, 25, 16, 2), beginning_alike(writer, 17, 16, 3)]
    slots = [list(range(20)), [*range(16), *range(100, 109)], [*range(16), 200]]
    texts = [writer, *readers]
    if reader_first:
        texts, slots = texts[::-1], slots[::-1]
    cache = filled_before([], [])
    check(Row(texts, slots, [True] * 3), cache, scaling=0.3, window=window)


def test_what_is_not_to_be_kept_is_not_written(kernel: str) -> None:
    texts = [text_of(9, 4, 1), text_of(6, 0, 2)]
    slots = [list(range(9)), list(range(20, 26))]
    cache = filled_before(texts, slots)
    before = [rows.clone() for rows in cache.read(LAYER, torch.arange(400))]
    check(Row(texts, slots, [False, False]), cache, scaling=0.3, window=None)
    after = cache.read(LAYER, torch.arange(400))
    assert all(map(torch.equal, map(torch.nan_to_num, before), map(torch.nan_to_num, after)))


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 45), st.integers(0, 44)), min_size=1, max_size=7),
    window=st.sampled_from(WINDOWS),
)
def test_any_lengths_after_any_prefixes(lengths: list[tuple[int, int]], window: int | None) -> None:
    texts = [
        text_of(length, min(cached, length - 1), seed)
        for seed, (length, cached) in enumerate(lengths)
    ]
    places = iter(range(400))
    slots = [[next(places) for _ in range(len(text.query))] for text in texts]
    cache = filled_before(texts, slots)
    check(Row(texts, slots, [True] * len(texts)), cache, scaling=0.2, window=window)


def test_neighbours_of_one_length_and_prefix_share_a_call() -> None:
    lengths, prefixes = np.array([5, 5, 5, 5, 2]), np.array([7, 7, 3, 0, 0])
    found = [tuple(run) for run in prefix_attention._runs(lengths, prefixes)]
    assert found == [(0, 2, 5, 7, 0), (10, 1, 5, 3, 14), (15, 1, 5, 0, 17), (20, 1, 2, 0, 17)]


def test_a_call_takes_a_bounded_number_of_keys_and_bits_do_not_depend_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = text_of(40, 0, seed=1)
    cache = KVCache(64, dtype=torch.float32, device=CPU)
    slots = list(range(40))
    attended(Row([first], [slots], [True]), cache, scaling=0.3, window=None)
    row = Row(
        [beginning_alike(first, 43, 40, seed=seed) for seed in range(2, 9)],
        [[*slots, 60, 61, 62]] * 7,
        [False] * 7,
    )
    together = attended(row, cache, scaling=0.3, window=None)
    monkeypatch.setattr(prefix_attention, "MOST_KEYS", 3 * 43 + 5)
    assert [run.texts for run in index_of(row, cache).runs] == [3, 3, 1]
    sliced = attended(row, cache, scaling=0.3, window=None)
    monkeypatch.setattr(prefix_attention, "MOST_KEYS", 10)
    assert [run.texts for run in index_of(row, cache).runs] == [1] * 7
    alone = attended(row, cache, scaling=0.3, window=None)
    assert all(map(torch.equal, together, sliced))
    assert all(map(torch.equal, together, alone))


def index_of(row: Row, cache: KVCache) -> PrefixIndex:
    return PrefixIndex.of(np.array([text.new for text in row.texts]), slots_of(row), cache)


def test_the_kernel_is_given_every_prefix_before_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_attention, "uses_varlen", lambda *_: True)
    cache = KVCache(10, dtype=torch.bfloat16, device=CPU)
    nothing = np.array([], dtype=np.int64)
    slots = PrefixSlots(np.array([2, 0, 4]), np.array([9, 4, 9, 4, 5, 6]), nothing, nothing)
    index = PrefixIndex.of(np.array([3, 2, 1]), slots, cache)
    read, _, _, order, queries, keys = index.arrays
    assert sorted(read) == [4, 5, 6, 9]  # each once
    assert [*read[order[[0, 1, 7, 8, 9, 10]]]] == [9, 4, 9, 4, 5, 6]
    assert [*order[[2, 3, 4, 5, 6, 11]]] == [4, 5, 6, 7, 8, 9]  # the row's own come after
    assert (queries.tolist(), keys.tolist()) == ([0, 3, 5, 6], [0, 5, 7, 12])
    assert (index.longest_query, index.longest_key) == (3, 5)
    sequences = PrefixedSequences.of(index, cache)
    assert sequences.joined is not None
    assert sequences.joined.key_boundaries.dtype == torch.int32


def test_attention_that_cannot_go_on_says_why() -> None:
    text = text_of(4, 0, 1)
    cache = KVCache(4, dtype=torch.float32, device=CPU)
    row = Row([text], [[0, 1, 2, 3]], [True])
    index = PrefixIndex.of(np.array([4]), slots_of(row), cache)
    sequences = PrefixedSequences.of(index, cache)
    rows = [each.transpose(0, 1) for each in text[:3]]
    with pytest.raises(NotImplementedError, match="is not causal"):
        sequences.attend(*rows, AttentionOptions(None, None, causal=False, layer=0))
    with pytest.raises(NotImplementedError, match="which layer"):
        sequences.attend(*rows, AttentionOptions(None, None, causal=True))
