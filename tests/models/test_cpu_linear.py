"""Prepacked linear layers: the same numbers, the same bits in any company, and a safe way back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from millpond.models import cpu_linear
from millpond.models.cpu_linear import fuse_gelus, prepack_linears

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


def layers(dtype: torch.dtype, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96, bias=bias), nn.GELU(), nn.Linear(96, 48, bias=bias))
    return model.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_agree_with_the_layers_replaced(dtype: torch.dtype, bias: bool) -> None:
    rows = torch.randn(33, 48).to(dtype)
    model = layers(dtype, bias=bias)
    expected = model(rows)
    assert prepack_linears(model) == 2
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(model(rows), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(model(rows[None]), expected[None], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_from_16_rows_on(dtype: torch.dtype) -> None:
    model = layers(dtype)
    prepack_linears(model)
    rows = torch.randn(300, 48).to(dtype)
    expected = model(rows)
    for count in (16, 17, 31, 64, 129, 299):
        assert torch.equal(model(rows[-count:]), expected[-count:])


def test_the_weight_is_held_once_and_still_says_what_it_is() -> None:
    model = layers(torch.bfloat16)
    prepack_linears(model)
    weight = model[0].weight
    assert (weight.dtype, tuple(weight.shape)) == (torch.bfloat16, (96, 48))
    assert weight.device.type == "meta"
    assert "_packed" not in model[0].state_dict()


def test_other_kinds_of_layers_stay() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Scaled(16, 16), nn.Linear(16, 16).double()).requires_grad_(False)
    assert prepack_linears(model) == 0


@pytest.mark.parametrize("fault", ["missing", "refuses", "wrong"])
def test_a_layer_stays_where_the_operators_fail_it(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    class Operators:
        def _reorder_linear_weight(self, weight: torch.Tensor, _: None) -> torch.Tensor:
            if fault == "refuses":
                raise RuntimeError("not for this processor")
            return weight

        def __getattr__(self, name: str) -> object:
            if fault == "missing":
                raise AttributeError(name)
            return lambda rows, weight, *_: rows @ weight.T  # leaves the bias out

    model = layers(torch.float32)
    rows = torch.randn(20, 48)
    expected = model(rows)
    monkeypatch.setattr(cpu_linear, "_operators", Operators)
    assert prepack_linears(model) == 0
    assert torch.equal(model(rows), expected)


class Intermediate(nn.Module):
    """A layer and its activation, as transformers' encoders write them."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(48, 96)
        self.intermediate_act_fn = activation

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(rows))


class ActivationFirst(Intermediate):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.dense(self.intermediate_act_fn(rows))


def prepacked(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = model.to(dtype).eval().requires_grad_(False)
    prepack_linears(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gelu_is_done_by_the_layer_before_it(dtype: torch.dtype) -> None:
    model = prepacked(nn.ModuleList([Intermediate(nn.GELU()) for _ in range(2)]), dtype)
    rows = torch.randn(40, 48).to(dtype)
    expected = model[0](rows)
    assert fuse_gelus(model) == 2
    assert isinstance(model[0].intermediate_act_fn, nn.Identity)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(model[0](rows), expected, rtol=tolerance, atol=tolerance)
    for count in (16, 17, 39):
        assert torch.equal(model[0](rows[-count:]), model[0](rows)[-count:])
    assert fuse_gelus(model) == 0


@pytest.mark.parametrize(
    "parent",
    [
        Intermediate(nn.ReLU()),
        Intermediate(nn.GELU(approximate="tanh")),
        ActivationFirst(nn.GELU()),
        nn.Sequential(nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 48)),
    ],
)
def test_any_other_activation_stays(parent: nn.Module) -> None:
    model = prepacked(parent)
    rows = torch.randn(20, 48)
    expected = model(rows)
    assert fuse_gelus(nn.ModuleList([model])) == 0
    assert torch.equal(model(rows), expected)
