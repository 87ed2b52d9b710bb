"""The one attention function, on its own: against the plain formula, and both of its paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel, masking_utils

from millpond.attention import packed as attention
from millpond.attention import varlen
from millpond.attention.implementations import register_attention
from millpond.attention.packed import AttentionOptions, PackedSequences, packed_attention

LENGTHS = [7, 7, 5, 1, 3, 3, 3]
SIZE = 8


def rows(heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, sum(LENGTHS), SIZE, generator=generator)


def plain(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, causal: bool
) -> Tensor:
    """The formula, one sequence at a time: `[1, total, heads, size]`."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    parts, start = [], 0
    for length in LENGTHS:
        q, k, v = (x[0, :, start : start + length] for x in (query, key, value))
        start += length
        scores = q @ k.transpose(1, 2) * scale
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        hidden = torch.zeros(length, length, dtype=torch.bool)
        if causal:
            hidden |= distance < 0
        if window is not None:
            hidden |= distance.abs() >= window
        parts.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts).unsqueeze(0)


def attend(sequences: PackedSequences, kv_heads: int, **options: Any) -> tuple[Tensor, Tensor]:
    """What the function gives, and what the formula gives."""
    query, key, value = rows(4, 0), rows(kv_heads, 1), rows(kv_heads, 2)
    module = nn.Module()
    module.is_causal = options["causal"]
    found, weights = packed_attention(
        module,
        query,
        key,
        value,
        None,
        packed_sequences=sequences,
        scaling=options["scale"],
        sliding_window=options["window"],
    )
    assert weights is None
    return found, plain(query, key, value, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2, 4, 50])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_every_sequence_is_attended_to_on_its_own(
    causal: bool, window: int | None, kv_heads: int
) -> None:
    sequences = PackedSequences.of(np.array(LENGTHS))
    found, expected = attend(sequences, kv_heads, scale=0.3, window=window, causal=causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 21, 22, 31, 70, 255, 300])
def test_keys_added_at_the_end_of_a_bfloat16_text_are_seen_by_nobody(length: int) -> None:
    rows = [torch.randn(4, 2 * length + 3, 32).to(torch.bfloat16) for _ in range(3)]
    sequences = PackedSequences.of(np.array([length, length, 3]))
    found = sequences.attend(*rows, AttentionOptions(0.2, None, causal=False))
    for start, stop in ((0, length), (length, 2 * length), (2 * length, 2 * length + 3)):
        query, key, value = (each[:, start:stop].float() for each in rows)
        expected = (query @ key.transpose(1, 2) * 0.2).softmax(-1) @ value
        torch.testing.assert_close(
            found[start:stop].float(), expected.transpose(0, 1), rtol=2e-2, atol=2e-2
        )


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
    num_splits: int | None = None,
) -> Tensor:
    """What torch documents of `varlen_attn`: `(left, right)` neighbours are seen, -1 is all."""
    assert max_q == max_k == max(cu_seq_q.diff().tolist())
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise ValueError("as many keys as queries")
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = torch.empty_like(query)
    left, right = window_size
    for start, stop in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)[None, :]
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if left >= 0:
            hidden |= distance > left
        if right >= 0:
            hidden |= -distance > right
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
        out[start:stop] = (scores.softmax(-1) @ v).transpose(0, 1)
    return out


@pytest.mark.parametrize("options", [{"enable_gqa", "num_splits", "window_size"}, {"window_size"}])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2, 4])
def test_the_cuda_kernel_is_asked_for_the_same(
    monkeypatch: pytest.MonkeyPatch, options: set[str], causal: bool, window: int | None
) -> None:
    """In today's torch, and in 2.11, whose kernel takes neither grouped queries nor splits."""
    calls = []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(set(kwargs) - {"scale"})
        return reference_varlen(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", record)
    monkeypatch.setattr(varlen, "_has_option", frozenset(options).__contains__)
    monkeypatch.setattr(varlen, "_shares_keys", lambda *_: False)
    monkeypatch.setattr(varlen, "_can_keep_keys_whole", lambda *_: "num_splits" in options)
    edges = torch.tensor(np.concatenate(([0], np.cumsum(LENGTHS))), dtype=torch.int32)
    sequences = PackedSequences.of(np.array(LENGTHS), boundaries=edges, deterministic=True)
    found, expected = attend(sequences, 2, scale=0.3, window=window, causal=causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert calls == [options]


def sharing(*inputs: Any, **options: Any) -> Tensor:
    """A kernel without the option whose heads share keys."""
    return reference_varlen(*inputs, **options, enable_gqa=True)


def mixing_up(query: Tensor, key: Tensor, value: Tensor, *inputs: Any, **options: Any) -> Tensor:
    """One whose heads take the first keys, whatever is theirs."""
    if key.shape != query.shape:
        key, value = (x[:, :1].expand_as(query) for x in (key, value))
    return reference_varlen(query, key, value, *inputs, **options)


@pytest.mark.parametrize(
    ("kernel", "shares"), [(sharing, True), (mixing_up, False), (reference_varlen, False)]
)
def test_keys_are_repeated_where_heads_do_not_share_them(
    monkeypatch: pytest.MonkeyPatch, kernel: Any, shares: bool
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    found = varlen._shares_keys.__wrapped__(torch.device("cpu"), torch.float32)
    assert found == shares


def refusing(*inputs: Any, num_splits: int | None = None, **options: Any) -> Tensor:
    """A kernel of a build whose option is for another kernel."""
    if num_splits is not None:
        raise RuntimeError("num_splits requires FA3")
    return reference_varlen(*inputs, **options)


@pytest.mark.parametrize(
    ("kernel", "options", "takes"),
    [
        (reference_varlen, {"window_size", "num_splits"}, True),
        (refusing, {"window_size", "num_splits"}, False),
        (refusing, {"window_size"}, False),
    ],
)
def test_keys_are_asked_to_stay_whole_where_the_kernel_can(
    monkeypatch: pytest.MonkeyPatch, kernel: Any, options: set[str], takes: bool
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(varlen, "_has_option", frozenset(options).__contains__)
    probe = varlen._can_keep_keys_whole.__wrapped__
    assert probe(torch.device("cpu"), torch.float32) == takes
    monkeypatch.setattr(varlen, "_can_keep_keys_whole", probe)
    edges = torch.tensor(np.concatenate(([0], np.cumsum(LENGTHS))), dtype=torch.int32)
    sequences = PackedSequences.of(np.array(LENGTHS), boundaries=edges, deterministic=True)
    found, expected = attend(sequences, 4, scale=0.3, window=None, causal=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "qwen3", "gemma3_text", "modernbert", "qwen2_sliding"])
def test_nobody_looks_for_packed_sequences_in_the_positions(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """transformers would, if the attention had a mask; on a GPU that waits for the device."""
    calls: list[Tensor] = []
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", calls.append)
    model = AutoModel.from_pretrained(checkpoint(name))
    register_attention()
    model.set_attn_implementation(attention.ATTENTION_NAME)
    ids, positions = torch.arange(20, 26)[None], torch.tensor([[0, 1, 2, 0, 1, 2]])
    sequences = PackedSequences.of(np.array([3, 3]))
    with torch.inference_mode():
        model(input_ids=ids, position_ids=positions, packed_sequences=sequences)
    assert not calls


def test_sequences_are_told_the_number_of_the_layer() -> None:
    class Recording:
        def attend(self, query: Tensor, _: Tensor, __: Tensor, asked: AttentionOptions) -> Tensor:
            seen.append(asked.layer)
            return query

    seen: list[int | None] = []
    module = nn.Module()
    module.layer_idx = 3  # type: ignore[assignment]
    row = rows(1, 0)
    packed_attention(module, row, row, row, None, scaling=1.0, packed_sequences=Recording())
    assert seen == [3]


def test_deterministic_sequences_share_no_group() -> None:
    groups = PackedSequences.of(np.array([7, 7, 5]), deterministic=True).groups
    assert groups == ((0, 1, 7), (7, 1, 7), (14, 1, 5))


def test_neighbours_of_equal_length_share_a_group() -> None:
    sequences = PackedSequences.of(np.array(LENGTHS))
    assert sequences.groups == ((0, 2, 7), (14, 1, 5), (19, 1, 1), (20, 3, 3))
    assert sequences.longest == 7


def test_only_half_precision_on_cuda_takes_the_kernel() -> None:
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert varlen.uses_varlen(cuda, torch.bfloat16)
    assert varlen.uses_varlen(cuda, torch.float16)
    assert not varlen.uses_varlen(cuda, torch.float32)
    assert not varlen.uses_varlen(cpu, torch.bfloat16)


def test_registering_twice_is_registering_once() -> None:
    register_attention()
    before = dict(AttentionInterface._global_mapping)
    register_attention()
    assert before == AttentionInterface._global_mapping
    assert before[attention.ATTENTION_NAME] is packed_attention


@pytest.mark.parametrize("rows", [1, 7, 16, 20, 64, 1000])
def test_blocks_hold_every_sequence_once(rows: int) -> None:
    lengths = np.array([30, 16, 16, 16, 7, 7, 7, 7, 1])
    found = []
    for first, block in PackedSequences.of(lengths).in_blocks(rows):
        spans = [
            (first + start + place * length, length)
            for start, count, length in block.groups
            for place in range(count)
        ]
        assert spans[0][0] == first
        assert all(count > 0 for _, count, _ in block.groups)
        assert block.total <= rows or len(spans) == 1
        found += spans
    assert found == list(zip(np.cumsum(lengths) - lengths, lengths, strict=True))
