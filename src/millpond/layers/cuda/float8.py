"""Rows and weights in float8 (e4m3, 3 bits of mantissa), with a scale for each row.

A number's error is a share of the number, 2.5 % in the root mean square, as long as it is within
the range of four decades and a half below the largest; so it does not matter whether a scale is
the closest one. Scales of weights are those of their rows, which are a product's channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LARGEST",
    "Float8Product",
    "Float8Rows",
    "empty_float8",
    "has_float8_products",
    "quantise_rows",
]

LARGEST = 448.0  # of e4m3
LEAST_CAPABILITY = (8, 9)
UNIT = 16  # widths of products are multiples of it


class Float8Rows(NamedTuple):
    """`values * scales` is what they stand for."""

    values: Tensor
    """`[n, width]`, float8_e4m3fn."""
    scales: Tensor
    """`[n, 1]`, float32."""


def empty_float8(rows: Tensor, width: int | None = None) -> Float8Rows:
    """Room for as many rows as these, of the same width or another."""
    values = rows.new_empty(len(rows), width or rows.shape[1], dtype=torch.float8_e4m3fn)
    return Float8Rows(values, rows.new_empty(len(rows), 1, dtype=torch.float32))


def quantise_rows(rows: Tensor) -> Float8Rows:
    """`[n, width]` rows by the largest number of each, in torch's operators."""
    wide = rows.float()
    scales = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
    values = (wide / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return Float8Rows(values, scales)


class Float8Product:
    """A linear layer's product with rows in float8; what comes out is in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, unit: float = 1.0) -> None:
        """`weight` `[out, in]`. The rows' values are to be multiplied by `unit` besides."""
        if any(size % UNIT for size in weight.shape):
            raise ValueError(f"a product in float8 needs sizes that are multiples of {UNIT}")
        quantised = quantise_rows(weight)
        self.values = quantised.values.t()
        self.scales = (quantised.scales * unit).t().contiguous()
        self.bias = None if bias is None else bias.to(torch.bfloat16)

    def of(self, rows: Tensor | Float8Rows) -> Tensor:
        """`[n, in]` rows to `[n, out]`."""
        assert isinstance(rows, Float8Rows)
        return torch._scaled_mm(
            rows.values,
            self.values,
            scale_a=rows.scales,
            scale_b=self.scales,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


def has_float8_products(device: torch.device) -> bool:
    """Whether the device and the installed torch multiply in float8, with a scale for each row."""
    scaled: Any = getattr(torch, "_scaled_mm", None)
    if device.type != "cuda" or scaled is None:
        return False
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return False
    weight = torch.eye(UNIT, device=device, dtype=torch.bfloat16)
    try:
        found = Float8Product(weight, None).of(quantise_rows(weight))
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return bool(torch.equal(found, weight))
