"""What int8 layers are made of, step by step, against the same in plain numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from millpond.layers.cpu.int8.product import Int8Product

kernels = pytest.importorskip("millpond.cpu.kernels", reason="Numba is not installed")

Array = npt.NDArray[Any]
DTYPES = [torch.float32, torch.bfloat16]
needs_tiles = pytest.mark.skipif(not kernels.has_tiles(), reason="no matrix units, or no bytes")


def numbers(rows: Tensor) -> Array:
    array: Array = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
    return array


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact_sums(rows: int, columns: int, outputs: int) -> tuple[Array, Array, Array, Array]:
    """Sums of whole numbers, and a step for each row, a scale and a bias for each output."""
    source = np.random.default_rng(0)
    sums = source.integers(-127, 128, (rows, columns)) @ source.integers(-9, 9, (columns, outputs))
    row_scales, scales = source.random(rows) / 30, source.random(outputs) / 100
    made = (sums, row_scales, scales, source.normal(size=outputs))
    return tuple(array.astype(np.float32) for array in made)  # type: ignore[return-value]


@pytest.mark.parametrize("zero", [0, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_rounded_by_its_largest_number(dtype: torch.dtype, zero: int) -> None:
    rows = random(5, 70, dtype=dtype)
    rows[1] *= 1000
    rows[2] = 0
    smoothing = 1 + random(70).abs()
    quantized, scales = np.empty((5, 70), np.uint8), np.empty(5, np.float32)
    kernels.quantize(numbers(rows), smoothing.numpy(), np.float32(zero), quantized, scales)
    expected = (rows.float() * smoothing).numpy()
    found = (quantized.astype(int) - zero if zero else quantized.view(np.int8)) * scales[:, None]
    assert (np.abs(found - expected) <= 0.501 * np.abs(expected).max(1, keepdims=True) / 127).all()
    assert not found[2].any()
    largest = np.abs(found).max(1) / np.maximum(scales, 1e-30)
    np.testing.assert_allclose(largest[[0, 1, 3, 4]], 127, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_rounded_to_even_as_torch_rounds_them(dtype: torch.dtype) -> None:
    rows, ones, zeros = random(40, 64), np.ones(64, np.float32), np.zeros(64, np.float32)
    rows[0, 0] = 1 + 2**-8  # half way between two bfloat16
    rows[0, 1] = 1 + 3 * 2**-8
    out = torch.empty(40, 64, dtype=dtype)
    scales = np.ones(40, np.float32)
    kernels.dequantize(rows.numpy(), scales, ones, zeros, numbers(out))
    assert torch.equal(out, rows.to(dtype))


def test_gelu_is_the_exact_one_within_a_small_part_of_a_step() -> None:
    sums = np.linspace(-12_000, 12_000, 4 * 2048, dtype=np.float32).reshape(4, 2048)
    ones, zeros = np.ones(2048, np.float32), np.zeros(2048, np.float32)
    quantized, scales = np.empty((4, 2048), np.uint8), np.empty(4, np.float32)
    kernels.gelu_and_quantize(
        sums, np.full(4, 1e-3, np.float32), ones, zeros, ones, np.float32(0), quantized, scales
    )
    expected = functional.gelu(torch.from_numpy(sums.astype(float) / 1e3)).numpy()
    error = np.abs(quantized.view(np.int8) * scales[:, None] - expected)
    assert (error <= 0.5 * scales[:, None] + 1e-3).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_a_sum_is_torchs(dtype: torch.dtype) -> None:
    sums, row_scales, scales, bias = exact_sums(70, 64, 96)
    others, weight, shift = random(70, 96, dtype=dtype), random(96, seed=1), random(96, seed=2)
    out = torch.empty_like(others)
    kernels.add_and_norm(
        *(sums, row_scales, scales, bias, numbers(others), weight.numpy(), shift.numpy()),
        *(np.float32(1e-5), numbers(out)),
    )
    rows = torch.from_numpy(sums * row_scales[:, None] * scales + bias).double() + others
    expected = functional.layer_norm(rows, (96,), weight.double(), shift.double(), 1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


# With matrix units.


@needs_tiles
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100])
@pytest.mark.parametrize(("columns", "outputs"), [(64, 32), (384, 96), (1536, 64)])
def test_products_in_tiles_are_exact(rows: int, columns: int, outputs: int) -> None:
    source = np.random.default_rng(0)
    quantized = source.integers(-127, 128, (rows, columns))
    quantized[:, 0] = 127  # then scales are 1, and elements their own quantised values
    weight = source.integers(-127, 128, (outputs, columns))
    ones = torch.ones(max(columns, outputs))
    product = Int8Product.of_quantized(
        torch.from_numpy(weight).to(torch.int8), ones[:outputs], 0 * ones[:outputs], ones[:columns]
    )
    assert product.packed.ndim == 3
    found = product.of(torch.from_numpy(quantized).float())
    assert np.array_equal(found.numpy(), quantized @ weight.T)
