"""Attention by kernels of ours, against torch's in double precision and in other company."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from millpond.attention import compiled
from millpond.attention.compiled import can_be_compiled
from millpond.attention.packed import PackedSequences
from millpond.cpu.openmp import limited_threads
from millpond.layers.cpu.attention import (
    CompiledAttention,
    attend_firsts,
)
from millpond.layers.cpu.int8.attention import tile_attention

kernels = pytest.importorskip("millpond.cpu.kernels", reason="Numba is not installed")

Attend = Callable[[Tensor, PackedSequences, int, float], Tensor]

needs_dot_products = pytest.mark.skipif(
    not kernels.has_dot_products(), reason="no dot products of bfloat16"
)
KERNELS = [
    pytest.param(
        tile_attention,
        id="tiles",
        marks=pytest.mark.skipif(not kernels.has_tiles(), reason="no matrix units, or no bytes"),
    ),
    pytest.param(CompiledAttention(1), id="dot products", marks=needs_dot_products),
    pytest.param(
        CompiledAttention(48),
        id="dot products or torch",
        marks=pytest.mark.skipif(
            not can_be_compiled(torch.bfloat16, 32), reason="torch attends on this processor"
        ),
    ),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected_attention(joined: Tensor, lengths: list[int], size: int, scaling: float) -> Tensor:
    found = []
    for rows in torch.split(joined[: sum(lengths)].double(), lengths):
        query, key, value = rows.view(len(rows), 3, -1, size).permute(1, 2, 0, 3)
        attended = scaled_dot_product_attention(query, key, value, scale=scaling)
        found.append(attended.transpose(0, 1).reshape(len(rows), -1))
    return torch.cat(found)


@pytest.mark.parametrize("attend", KERNELS)
@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("spread", [0.1, 1.5, 8.0])  # the largest scores are beyond 2 ** 60
def test_attention_is_that_of_each_sequence(attend: Attend, size: int, spread: float) -> None:
    lengths = [5, 1, 33, 64, 64, 70, 31, 2, 200, 48, 47]
    total = sum(lengths)
    joined = (spread * random(total + 7, 3 * 2 * size)).bfloat16()
    found = attend(joined, PackedSequences.of(np.array(lengths)), size, size**-0.5)
    expected = expected_attention(joined, lengths, size, size**-0.5)
    assert (found[:total].double() - expected).norm() <= 4e-3 * expected.norm()
    assert not found[total:].any()


@pytest.mark.parametrize("attend", KERNELS[:2])
@pytest.mark.parametrize("shift", [100.0, -100.0])
def test_scores_far_from_zero_are_told_apart(attend: Attend, shift: float) -> None:
    joined = random(40, 96)
    joined[:, 0] = 16  # of every query
    joined[:, 32] = shift  # of every key: all scores of a row move by as much
    joined = joined.bfloat16()
    found = attend(joined, PackedSequences.of(np.array([40])), 32, 1.0)
    expected = expected_attention(joined, [40], 32, 1.0)
    assert found.isfinite().all()
    assert (found.double() - expected).norm() <= 8e-3 * expected.norm()


@pytest.mark.parametrize("attend", KERNELS)
@pytest.mark.parametrize("length", [20, 70])
def test_a_sequence_has_the_same_bits_in_any_company(attend: Attend, length: int) -> None:
    joined = random(length, 3 * 64).bfloat16()
    alone = attend(joined, PackedSequences.of(np.array([length])), 32, 0.2)
    others = 5 * random(333, 3 * 64, seed=1).bfloat16()
    both = PackedSequences.of(np.array([300, 33, length]))
    assert torch.equal(attend(torch.cat([others, joined]), both, 32, 0.2)[333:], alone)


@pytest.mark.parametrize("attend", KERNELS)
def test_what_is_not_a_number_stays_in_its_sequence(attend: Attend) -> None:
    lengths = [10, 30, 60, 80, 12]
    joined = random(sum(lengths), 3 * 64).bfloat16()
    clean = attend(joined, PackedSequences.of(np.array(lengths)), 32, 0.2)
    joined[10:40], joined[100:180] = torch.nan, torch.nan
    found = attend(joined, PackedSequences.of(np.array(lengths)), 32, 0.2)
    for place, (rows, before) in enumerate(
        zip(torch.split(found, lengths), torch.split(clean, lengths), strict=True)
    ):
        assert rows.isnan().all() if place in (1, 3) else torch.equal(rows, before)


@needs_dot_products
@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_give_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LEAST_OPERATIONS", 0)
    joined, sequences = random(700, 3 * 128).bfloat16(), PackedSequences.of(np.array([300, 400]))
    with limited_threads(1):
        expected = CompiledAttention(1)(joined, sequences, 32, 0.2)
    with limited_threads(threads):
        for _ in range(20):
            assert torch.equal(CompiledAttention(1)(joined, sequences, 32, 0.2), expected)


@pytest.mark.parametrize("attend", KERNELS)
def test_first_tokens_alone_have_the_same_bits(attend: Attend) -> None:
    lengths = np.array([64, 5, 100, 48, 48, 1, 20])
    joined = random(int(lengths.sum()), 3 * 64).bfloat16()
    starts = torch.from_numpy(np.cumsum(lengths) - lengths)
    places = torch.cat([starts, starts.new_zeros(9)])
    given = joined, PackedSequences.of(lengths), 32, 0.2
    found = attend_firsts(attend, *given, places)
    assert found.shape == (len(places), 64)
    assert torch.equal(found[: len(lengths)], attend(*given)[starts])
