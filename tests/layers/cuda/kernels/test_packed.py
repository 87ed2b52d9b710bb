"""The kernels between the products of packed layers, against torch's operators in float64."""

from __future__ import annotations

import importlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference_kernels import REFERENCE
from torch import Tensor

from millpond.layers.cuda.float8 import Float8Product, Float8Rows, quantise_rows
from millpond.layers.cuda.kernels.packed import LayerNorm, PackedKernels, packed_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HALF = [torch.float16, torch.bfloat16]
WIDTHS = [32, 384, 768, 1000, 4096]
ROUNDING = 0.03  # of e4m3, in the root mean square
HALF_ROUNDING = 1e-3


@pytest.fixture
def kernels() -> PackedKernels:
    found = packed_kernels(torch.device("cuda:0"))
    assert found is not None
    return found


@pytest.fixture
def random() -> SimpleNamespace:
    generator = torch.Generator("cuda").manual_seed(0)

    def rows(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device="cuda", generator=generator).to(dtype)

    return SimpleNamespace(rows=rows)


def assert_float8(found: Any, expected: Any) -> None:
    assert isinstance(found, Float8Rows)
    assert isinstance(expected, Float8Rows)
    torch.testing.assert_close(found.scales, expected.scales, rtol=1e-2, atol=0)
    mine, other = (rows.values.float() * rows.scales for rows in (found, expected))
    assert (mine - other).norm() < ROUNDING * other.norm()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_layer_norm_of_a_sum(
    kernels: PackedKernels, random: SimpleNamespace, width: int, dtype: torch.dtype
) -> None:
    rows, residual = (random.rows(41, width, dtype=dtype) for _ in range(2))
    norm = LayerNorm(random.rows(width, dtype=dtype), random.rows(width, dtype=dtype), 1e-5)
    expected = REFERENCE.add_layer_norm(rows, residual, norm, float8=True)
    found = kernels.add_layer_norm(rows, residual, norm, float8=True)
    torch.testing.assert_close(found[0], expected[0])
    assert_float8(found[1], expected[1])
    plain, nothing = kernels.add_layer_norm(rows, residual, norm)
    assert nothing is None
    torch.testing.assert_close(plain, found[0])
    part, _ = kernels.add_layer_norm(rows[7:9], residual[7:9], norm)
    assert torch.equal(part, plain[7:9])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("has_table", "has_types"), [(True, True), (True, False), (False, False)])
def test_the_norm_of_embeddings(
    kernels: PackedKernels,
    random: SimpleNamespace,
    dtype: torch.dtype,
    has_table: bool,
    has_types: bool,
) -> None:
    width = 384
    words, places = (random.rows(n, width, dtype=dtype) for n in (50, 30))
    kinds = random.rows(2, width, dtype=dtype) if has_table else None
    types = torch.arange(41, device="cuda") % 2 if has_types else None
    options: Any = {"types": types, "float8": True}
    norm = LayerNorm(random.rows(width, dtype=dtype), random.rows(width, dtype=dtype), 1e-12)
    ids = torch.arange(41, device="cuda") * 7 % 50
    positions = torch.arange(41, device="cuda") % 30
    tables = (words, places, kinds)
    expected = REFERENCE.embedding_norm(ids, positions, tables, norm, **options)
    found = kernels.embedding_norm(ids, positions, tables, norm, **options)
    torch.testing.assert_close(found[0], expected[0])
    assert_float8(found[1], expected[1])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("float8", [False, True])
def test_an_rms_norm_of_a_sum(
    kernels: PackedKernels, random: SimpleNamespace, width: int, dtype: torch.dtype, float8: bool
) -> None:
    weight = random.rows(width, dtype=dtype)
    for rows in (random.rows(41, width, dtype=dtype), None):
        residual = random.rows(41, width, dtype=dtype)
        sums = (residual.clone(), residual.clone())
        expected = REFERENCE.add_rms_norm(rows, sums[0], weight, 1e-6, float8=float8)
        found = kernels.add_rms_norm(rows, sums[1], weight, 1e-6, float8=float8)
        torch.testing.assert_close(sums[1], sums[0])
        if float8:
            assert_float8(found, expected)
        else:
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("heads", "size"), [((16, 8), 128), ((3, 1), 64), ((5, 5), 80)])
@pytest.mark.parametrize("has_norms", [True, False])
def test_queries_and_keys_are_normalised_and_turned_where_they_are(
    kernels: PackedKernels,
    random: SimpleNamespace,
    heads: tuple[int, int],
    size: int,
    dtype: torch.dtype,
    has_norms: bool,
) -> None:
    joined = random.rows(50, (sum(heads) + heads[1]) * size, dtype=dtype)
    angles = random.rows(50, size // 2, dtype=torch.float32).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    weights = (random.rows(size, dtype=dtype), random.rows(size, dtype=dtype), 1e-6)
    norms = weights if has_norms else None
    found, expected = joined.clone(), joined.clone()
    kernels.norm_and_rotate(found, cos, sin, heads=heads, norms=norms)
    REFERENCE.norm_and_rotate(expected, cos, sin, heads=heads, norms=norms)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:, sum(heads) * size :], joined[:, sum(heads) * size :])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("width", WIDTHS)
def test_gates(
    kernels: PackedKernels, random: SimpleNamespace, width: int, dtype: torch.dtype
) -> None:
    joined = random.rows(41, 2 * width, dtype=dtype)
    expected = REFERENCE.silu_times_joined(joined)
    torch.testing.assert_close(kernels.silu_times_joined(joined), expected)
    float8 = REFERENCE.silu_times_joined_float8(joined)
    assert_float8(kernels.silu_times_joined_float8(joined), float8)
    assert_float8(kernels.gelu_float8(joined), REFERENCE.gelu_float8(joined))


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_in_float8(random: SimpleNamespace, has_bias: bool) -> None:
    weight, rows = (random.rows(n, 256, dtype=torch.bfloat16) for n in (96, 100))
    bias = random.rows(96, dtype=torch.bfloat16) if has_bias else None
    found = Float8Product(weight, bias, unit=0.5).of(quantise_rows(rows))
    expected = 0.5 * rows.float() @ weight.float().t() + (0 if bias is None else bias.float())
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 2 * ROUNDING * expected.norm()


EDGES = (0, 330, 400, 401, 434, 434)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "keys", "size"), [(4, 4, 32), (4, 2, 64), (6, 2, 128)])
def test_attention_within_each_sequence(
    random: SimpleNamespace, heads: int, keys: int, size: int, causal: bool, window: int | None
) -> None:
    attend = importlib.import_module("millpond.attention.triton_varlen").attend
    rows = random.rows(440, heads + 2 * keys, size, dtype=torch.float16)
    parts = torch.split(rows, [heads, keys, keys], dim=1)
    bounds = torch.tensor(EDGES, dtype=torch.int32, device="cuda")
    options = {
        "query_boundaries": bounds,
        "key_boundaries": bounds,
        "scaling": None,
        "window": window,
        "causal": causal,
    }
    for longest in (330, 1024, 4096):
        found = attend(*parts, longest_query=longest, **options)
        float8 = attend(*parts, longest_query=longest, **options, float8_scale=4.0)
        for start, stop in pairwise(EDGES):
            if start == stop:
                continue
            expected = one_sequence([part[start:stop] for part in parts], causal, window)
            assert distance(found[start:stop], expected) < HALF_ROUNDING
            assert distance(float8[start:stop].float() / 4, expected) < ROUNDING


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def one_sequence(parts: list[Tensor], causal: bool, window: int | None) -> Tensor:
    position = torch.arange(len(parts[0]), device="cuda")
    back = position[:, None] - position[None, :]
    sees = torch.ones_like(back, dtype=torch.bool)
    if causal:
        sees &= back >= 0
    if window is not None:
        sees &= back.abs() < window
    rows = (part.double().transpose(0, 1) for part in parts)
    out = torch.nn.functional.scaled_dot_product_attention(*rows, attn_mask=sees, enable_gqa=True)
    return out.transpose(0, 1).to(parts[0].dtype)


def test_more_keys_than_queries_stand_before_them(random: SimpleNamespace) -> None:
    attend = importlib.import_module("millpond.attention.triton_varlen").attend
    rows = random.rows(200, 6, 64, dtype=torch.float16)
    query, key, value = rows[150:, :2], rows[:, 2:4], rows[:, 4:]
    found = attend(
        query,
        key,
        value,
        query_boundaries=torch.tensor([0, 50], dtype=torch.int32, device="cuda"),
        key_boundaries=torch.tensor([0, 200], dtype=torch.int32, device="cuda"),
        longest_query=128,
        scaling=None,
        window=None,
        causal=True,
    )
    expected = one_sequence([rows[:, :2], key, value], causal=True, window=None)
    assert distance(found, expected[150:]) < HALF_ROUNDING


@pytest.mark.parametrize(("rows", "width", "out"), [(1, 64, 64), (300, 768, 3072), (1000, 384, 80)])
def test_the_gelu_of_a_product_comes_in_float8(
    random: SimpleNamespace, rows: int, width: int, out: int
) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs tensor maps")
    found_by = importlib.import_module("millpond.layers.cuda.kernels.float8").gelu_of_product
    quantised = quantise_rows(random.rows(rows, width, dtype=torch.bfloat16))
    weight = random.rows(out, width, dtype=torch.bfloat16) / width**0.5
    product = Float8Product(weight, random.rows(out, dtype=torch.bfloat16))
    found = found_by(quantised, product, 20.0)
    expected = torch.nn.functional.gelu(product.of(quantised).float())
    assert (found.float() / 20 - expected).norm() < ROUNDING * expected.norm()
