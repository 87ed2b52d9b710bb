"""Attention by the kernel that Numba compiles for CPUs: what it gives, and when it is read."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from millpond.attention import compiled
from millpond.attention.compiled import can_be_compiled, without_loading_kernels
from millpond.attention.packed import AttentionOptions, PackedSequences
from millpond.layers.cpu.attention import CompiledAttention, attend_in_groups

kernels = pytest.importorskip("millpond.cpu.kernels", reason="Numba is not installed")

LENGTHS = [3, 150, 47, 48, 300, 1, 65]
needs_dot_products = pytest.mark.skipif(
    not can_be_compiled(torch.bfloat16, 32), reason="torch attends on this processor"
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(heads: int, key_heads: int, size: int, *, by_row: bool) -> list[Tensor]:
    """Queries, keys and values bfloat16 `[heads, rows, size]`, in memory by row or by head."""
    rows, found = sum(LENGTHS) + 5, []
    for seed, count in enumerate((heads, key_heads, key_heads)):
        made = random(rows, count, size, seed=seed).bfloat16().transpose(0, 1)
        found.append(made if by_row else made.contiguous())
    return found


def expected(rows: list[Tensor], options: AttentionOptions) -> Tensor:
    parts = []
    query, key, value = (torch.split(each[:, : sum(LENGTHS)], LENGTHS, 1) for each in rows)
    for q, k, v in zip(query, key, value, strict=True):
        place = torch.arange(q.shape[1])
        far = (place[:, None] - place[None]).abs() >= (options.window or len(place))
        attended = scaled_dot_product_attention(
            *(each[None].double() for each in (q, k, v)),
            attn_mask=~far,
            scale=options.scaling,
            enable_gqa=True,
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


@needs_dot_products
@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(3, 3, 32), (4, 2, 64)])
@pytest.mark.parametrize("window", [None, 1, 9, 33, 64, 128])
def test_packed_sequences_attend_as_torch_has_it(
    window: int | None, heads: int, key_heads: int, size: int, by_row: bool
) -> None:
    rows = inputs(heads, key_heads, size, by_row=by_row)
    options = AttentionOptions(0.2, window, causal=False)
    found = PackedSequences.of(np.array(LENGTHS)).attend(*rows, options)
    total = sum(LENGTHS)
    assert found.shape == (total + 5, heads, size)
    right = expected(rows, options)
    assert (found[:total].double() - right).norm() <= 4e-3 * right.norm()
    assert not found[total:].any()


@needs_dot_products
@pytest.mark.parametrize("window", [None, 40])
def test_a_text_has_the_same_bits_alone(window: int | None) -> None:
    rows, options = inputs(3, 3, 32, by_row=False), AttentionOptions(None, window, causal=False)
    together = PackedSequences.of(np.array(LENGTHS)).attend(*rows, options)
    start = 0
    for length in LENGTHS:
        own = [each[:, start : start + length].contiguous() for each in rows]
        alone = PackedSequences.of(np.array([length])).attend(*own, options)
        assert torch.equal(together[start : start + length], alone)
        start += length


@needs_dot_products
def test_causal_attention_and_other_precisions_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("by the kernel")

    monkeypatch.setattr("millpond.attention.packed.attend_compiled", fail)
    rows, sequences = inputs(2, 2, 32, by_row=False), PackedSequences.of(np.array(LENGTHS))
    sequences.attend(*rows, AttentionOptions(None, None, causal=True))
    sequences.attend(*(each.float() for each in rows), AttentionOptions(None, None, causal=False))
    with pytest.raises(AssertionError, match="by the kernel"):
        sequences.attend(*rows, AttentionOptions(None, None, causal=False))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As in a process in which no text needed the kernel yet."""
    found: list[Any] = []
    monkeypatch.setattr(compiled, "_found", found)
    return found


@needs_dot_products
def test_the_kernel_is_read_by_the_first_text_that_is_long(unread: list[Any]) -> None:
    attend = CompiledAttention(48)

    def run(length: int) -> Tensor:
        joined = random(length, 96).bfloat16()
        return attend(joined, PackedSequences.of(np.array([length])), 32, 0.2)

    run(47)
    assert not unread
    with without_loading_kernels():
        by_torch = run(60)
    assert not unread
    by_ours = run(60)
    assert len(unread) == 1
    with without_loading_kernels():  # it is read already
        assert torch.equal(run(60), by_ours)
    assert not torch.equal(by_torch, by_ours)


@needs_dot_products
def test_threads_that_need_it_at_once_read_it_once(
    unread: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, begun = [], threading.Barrier(4)

    def read() -> None:
        reads.append(threading.get_ident())

    def need() -> None:
        begun.wait(10)
        compiled.load_kernel()

    monkeypatch.setattr(compiled, "_read", read)
    threads = [threading.Thread(target=need) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(reads) == 1


@needs_dot_products
@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda address, threads: None, "off by"),
        (lambda address, threads: 1 / 0, "division by zero"),
    ],
)
def test_a_kernel_that_fails_is_not_used(
    kernel: Any,
    reason: str,
    unread: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compiled, "_with_threads", lambda entry: kernel)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    joined, sequences = random(60, 96).bfloat16(), PackedSequences.of(np.array([60]))
    with caplog.at_level(logging.WARNING, "millpond"):
        found = CompiledAttention(48)(joined, sequences, 32, 0.2)
    assert torch.equal(found, attend_in_groups(joined, sequences, 32, 0.2))
    (message,) = caplog.messages
    assert "torch's kernel alone" in message
    assert reason in message


def test_it_is_for_bfloat16_and_processors_that_multiply_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = {"_is_avx512_bf16_supported": True, "_is_amx_tile_supported": False}

    def chosen(dtype: torch.dtype = torch.bfloat16, size: int = 32, **changed: bool) -> bool:
        for name, value in {**processor, **changed}.items():
            monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
        compiled._suits_processor.cache_clear()
        return can_be_compiled(dtype, size)

    try:
        assert chosen()
        assert chosen(size=64)
        assert not chosen(torch.float32)
        assert not chosen(size=80)
        assert not chosen(_is_avx512_bf16_supported=False)
        assert not chosen(_is_amx_tile_supported=True)  # torch's kernel makes use of those
        monkeypatch.setattr(compiled, "find_spec", lambda name: None)
        assert not chosen()
    finally:
        compiled._suits_processor.cache_clear()
