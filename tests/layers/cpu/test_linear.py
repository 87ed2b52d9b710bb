"""Prepacked linear layers: the same numbers, the same bits in every batch, and a safe way back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from millpond.layers.cpu import linear, onednn
from millpond.layers.cpu.batch_invariance import is_invariant
from millpond.layers.cpu.linear import fuse_gelus, has_invariant_products, prepack_linears


def has_bfloat16_products() -> bool:
    return prepack_linears(nn.Sequential(nn.Linear(16, 16).bfloat16().requires_grad_(False))) == 1


pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)

prepacks_bfloat16 = pytest.mark.skipif(
    not has_bfloat16_products(), reason="oneDNN takes no bfloat16 on this processor"
)
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=prepacks_bfloat16)]


def layers(dtype: torch.dtype, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96, bias=bias), nn.GELU(), nn.Linear(96, 48, bias=bias))
    return model.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_agree_with_the_layers_replaced(dtype: torch.dtype, bias: bool) -> None:
    rows = torch.randn(33, 48).to(dtype)
    model = layers(dtype, bias=bias)
    expected = model(rows)
    assert prepack_linears(model) == 2
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(model(rows), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(model(rows[None]), expected[None], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_from_16_rows_on(dtype: torch.dtype) -> None:
    model = layers(dtype)
    prepack_linears(model)
    rows = torch.randn(300, 48).to(dtype)
    expected = model(rows)
    for count in (16, 17, 31, 64, 129, 299):
        assert torch.equal(model(rows[-count:]), expected[-count:])


@prepacks_bfloat16
def test_the_weight_is_held_once_and_still_says_what_it_is() -> None:
    model = layers(torch.bfloat16)
    prepack_linears(model)
    weight = model[0].weight
    assert (weight.dtype, tuple(weight.shape)) == (torch.bfloat16, (96, 48))
    assert weight.device.type == "meta"
    assert "packed" not in model[0].state_dict()


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
    monkeypatch.setattr(onednn, "OPERATORS", Operators())
    assert prepack_linears(model) == 0
    assert torch.equal(model(rows), expected)


def wide_layers(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    """In float32 a product of 1100 columns has ends that no whole number of vectors reaches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1100, 600), nn.GELU(), nn.Linear(600, 40, bias=False))
    return model.to(dtype).eval().requires_grad_(False)


def cancelling(columns: int, layer: nn.Linear) -> torch.Tensor:
    """Rows whose products with the layer, which is changed for it, are all rounding."""
    half = columns // 2
    layer.weight[:, half:] = -layer.weight[:, :half]
    layer.bias.zero_()
    rows = torch.randn(300, half)
    return torch.cat([rows, rows], dim=1).to(layer.weight.dtype)


class MatrixUnits:
    """A processor that sums long products in pieces, once there are many rows."""

    most_rows_in_one, most_columns_in_one, columns = 32, 480, 160

    def _reorder_linear_weight(self, weight: torch.Tensor, _: None) -> torch.Tensor:
        return weight

    @property
    def _linear_pointwise(self) -> MatrixUnits:
        return self

    def __call__(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        post_op: str,
        *_: object,
    ) -> torch.Tensor:
        out = self.product(rows, weight)
        out = out if bias is None else out + bias
        return (nn.functional.gelu(out) if post_op == "gelu" else out).to(rows.dtype)

    def binary(
        self, rows: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, *_: object
    ) -> torch.Tensor:
        return (self.product(rows, weight) + other).to(rows.dtype)

    def product(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        few = rows.shape[:-1].numel() <= self.most_rows_in_one
        narrow = rows.shape[-1] <= self.most_columns_in_one
        columns = rows.shape[-1] if few or narrow else self.columns
        pieces = zip(rows.split(columns, -1), weight.split(columns, 1), strict=True)
        # Sums of bfloat16 products are exact in float64, so only the pieces are rounded.
        sums = [(r.double() @ w.double().T).float() for r, w in pieces]
        return torch.stack(sums).cumsum(0)[-1]


@pytest.fixture
def matrix_units(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(onednn, "OPERATORS", MatrixUnits())
    is_invariant.cache_clear()
    yield
    is_invariant.cache_clear()


@pytest.mark.usefixtures("matrix_units")
def test_products_that_depend_on_the_batch_are_found_and_split_where_asked() -> None:
    fast, invariant = wide_layers(), wide_layers()
    rows = cancelling(1100, fast[0])
    invariant.load_state_dict(fast.state_dict())
    assert prepack_linears(fast) == prepack_linears(invariant, batch_invariant=True) == 2
    assert not torch.equal(fast(rows)[:20], fast(rows[:20]))
    assert not has_invariant_products(fast)
    assert torch.equal(invariant(rows)[:20], invariant(rows[:20]))
    assert has_invariant_products(invariant)
    assert [len(invariant[i].packed) for i in (0, 2)] == [3, 2]


class OtherLastRows(MatrixUnits):
    """A processor that takes six rows at a time, and sums one to three that are left otherwise."""

    def product(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        left = rows.shape[:-1].numel() % 6
        out = (rows.double() @ weight.double().T).float()
        if 0 < left < 4:
            out[-left:] += 1e-3
        return out


class OtherManyRows(MatrixUnits):
    """A processor that sums long products in pieces only where there are a thousand rows."""

    most_rows_in_one = 600


@pytest.mark.parametrize("processor", [OtherLastRows, OtherManyRows])
def test_products_that_differ_in_some_numbers_of_rows_only_are_found(
    processor: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "OPERATORS", processor())
    assert not is_invariant.__wrapped__(512, 64, torch.float32)


@pytest.mark.usefixtures("matrix_units")
@pytest.mark.parametrize(("columns", "packed"), [(96, 96), (300, 320), (16, 32)])
def test_narrow_products_stay_in_one(columns: int, packed: int) -> None:
    """What is no multiple of what a matrix unit takes is filled up to one."""
    torch.manual_seed(0)
    layer = nn.Linear(columns, 24).bfloat16().requires_grad_(False)
    model, rows = nn.Sequential(layer), torch.randn(40, columns).bfloat16()
    expected = layer(rows)
    assert prepack_linears(model, batch_invariant=True) == 1
    assert [tuple(piece.shape) for piece in model[0].packed] == [(24, packed)]
    assert has_invariant_products(model)
    torch.testing.assert_close(model(rows), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_what_the_probe_finds_is_true_of_this_processor(
    dtype: torch.dtype, batch_invariant: bool
) -> None:
    model = wide_layers(dtype)
    rows = cancelling(1100, model[0])
    assert prepack_linears(model, batch_invariant=batch_invariant) == 2
    if batch_invariant or dtype == torch.float32:
        assert has_invariant_products(model)
    expected = model(rows)
    same = [torch.equal(model(rows[:n]), expected[:n]) for n in (16, 17, 33, 48, 64, 129, 299)]
    assert all(same) == has_invariant_products(model)


@prepacks_bfloat16
@pytest.mark.usefixtures("threads")
def test_steady_layers_keep_their_bits_on_any_number_of_threads() -> None:
    model = wide_layers()
    rows = cancelling(1100, model[0])
    prepack_linears(model, batch_invariant=True)
    expected = model(rows)
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        assert torch.equal(model(rows), expected)
        assert torch.equal(model(rows[-40:]), expected[-40:])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_pieces(model: nn.Sequential) -> nn.Sequential:
    for i in (0, 2):
        model[i] = linear.PrepackedLinear.of(model[i], 384)
    return model


@prepacks_bfloat16
@pytest.mark.parametrize("fused", [False, True])
def test_a_layer_in_pieces_agrees_with_the_one_replaced(fused: bool) -> None:
    model = wide_layers()
    rows = torch.randn(33, 1100).bfloat16()
    expected = model.double()(rows.double()).float()
    split = in_pieces(wide_layers())
    if fused:
        split[0].post_op, split[1] = "gelu", nn.Identity()
    for found in (split(rows), split(rows[None])[0]):
        assert (found.float() - expected).norm() < 0.01 * expected.norm()


@prepacks_bfloat16
def test_large_batches_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_pieces(wide_layers())
    rows = torch.randn(1, 300, 1100).bfloat16()
    expected = model(rows)
    monkeypatch.setattr(onednn, "MOST_NUMBERS", 600 * 40)
    assert torch.equal(model(rows), expected)


@prepacks_bfloat16
def test_products_outside_these_layers_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Linear):
        pass

    def is_batch_invariant(
        columns: int,
        outputs: int,
        dtype: torch.dtype,
        threads: object,
        *,
        prepacked: bool,
        **_: object,
    ) -> bool:
        return prepacked

    monkeypatch.setattr(linear, "is_invariant", is_batch_invariant)
    model = prepacked(nn.Sequential(nn.Embedding(9, 48), *layers(torch.float32)), torch.bfloat16)
    assert has_invariant_products(model)
    assert not has_invariant_products(nn.Sequential(model, Scaled(48, 48).bfloat16()))
    assert not has_invariant_products(nn.Sequential(model, Scaled(48, 48)))
    assert has_invariant_products(nn.Sequential(model, nn.Embedding(48, 48)))


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


@pytest.mark.parametrize("dtype", DTYPES)
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


def test_gpt2_s_layers_are_prepacked_too() -> None:
    torch.manual_seed(0)
    layer = Conv1D(24, 48).requires_grad_(False)
    layer.bias.normal_()
    model, rows = nn.Sequential(layer), torch.randn(3, 20, 48)
    expected = layer(rows)
    assert prepack_linears(model) == 1
    torch.testing.assert_close(model(rows), expected)
