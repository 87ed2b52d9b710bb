"""Activations: the numbers of those replaced, and the same bits wherever an element stands."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import GELUTanh, QuickGELUActivation, SiLUActivation

from millpond.layers.cpu.activation import PIECE, replace_activations

ACTIVATIONS = [nn.SiLU, SiLUActivation, GELUTanh, QuickGELUActivation, nn.Sigmoid, nn.Softplus]


def steady(activation: nn.Module) -> nn.Module:
    model = nn.Sequential(activation)
    assert replace_activations(model) == 1
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", ACTIVATIONS)
def test_an_element_has_the_same_bits_anywhere(make: type[nn.Module], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(1, 1500, 72, generator=generator) * 3).to(dtype)
    model = steady(make())
    found = model(rows)
    assert found.shape == rows.shape
    torch.testing.assert_close(found, make()(rows))
    for start, stop in [(0, 1), (7, 8), (3, 20), (1000, 1037), (5, 1500)]:
        assert torch.equal(model(rows[:, start:stop]), found[:, start:stop])
        assert torch.equal(model(rows[0, start:stop]), found[0, start:stop])


@pytest.mark.parametrize("size", [0, 1, 127, 128, PIECE - 1, PIECE, PIECE + 1])
def test_any_size(size: int) -> None:
    elements = torch.linspace(-4, 4, size)
    torch.testing.assert_close(steady(nn.SiLU())(elements), nn.functional.silu(elements))


def test_a_strided_input() -> None:
    rows = torch.randn(10, 256)
    half = rows[:, 128:]
    torch.testing.assert_close(steady(nn.SiLU())(half), nn.functional.silu(half))


def test_only_unsteady_ones_are_replaced() -> None:
    class Mine(nn.SiLU):
        pass

    kept = [nn.ReLU(), nn.GELU(), nn.Tanh(), Mine()]
    model = nn.Sequential(*kept, nn.Sequential(nn.GELU(approximate="tanh")))
    assert replace_activations(model) == 1
    assert [model[i] for i in range(4)] == kept
