"""The two parts of a layer, attention and what follows it, as products and few kernels between.

Query, key and value are one product, and so are the two halves of a gated layer. The weights of
the layers they come from are views of the joined ones, so that the model's own forward stays as it
is and nothing is held twice. With float8 products a part's input, and what is between its products,
comes in float8 from the kernel before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....attention.packed import AttentionOptions, Sequences
from ...split import RowSplitLinear
from ..float8 import LARGEST, Float8Product, Float8Rows
from ..kernels.packed import PackedKernels

__all__ = [
    "Attention",
    "Forward",
    "GatedFeedForward",
    "GeluFeedForward",
    "HalfProduct",
    "InputNorm",
    "Rows",
    "join",
    "largest_output",
]

Rows = Tensor | Float8Rows
"""`[n, width]`."""

ROUNDING = 1.25  # more than the weights' rounding to float8 adds to a sum


class Forward(NamedTuple):
    """What the layers of one forward pass share."""

    sequences: Sequences
    angles: tuple[Tensor, Tensor] | None
    """Cosines and sines of rotary embeddings, `[n, size]`."""
    ones: Tensor | None
    """`[n, 1]`, float32: scales of rows whose scale is in the weights; None without float8."""


class InputNorm(NamedTuple):
    """The weight and bias `[width]` of the norm that a part's rows come from."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class HalfProduct:
    """A linear layer's product in half precision."""

    weight: Tensor
    bias: Tensor | None

    def of(self, rows: Rows) -> Tensor:
        """`[n, in]` rows to `[n, out]`."""
        assert isinstance(rows, Tensor)
        return functional.linear(rows, self.weight, self.bias)

    def gelu_of(self, rows: Rows) -> Tensor:
        """The GELU of it, in the product's own kernel, by tanh: 0.0005 off at the most."""
        assert isinstance(rows, Tensor)
        assert self.bias is not None
        out: Tensor = torch._addmm_activation(self.bias, rows, self.weight.t(), use_gelu=True)
        return out


Product = HalfProduct | Float8Product
LastProduct = Product | RowSplitLinear
"""Of attention, or of a feed-forward layer."""


def join(linears: list[nn.Linear]) -> HalfProduct:
    """One product for layers that have the same input, whose weights become views of its own."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    weight = torch.cat(weights)
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    start = 0
    for linear in linears:
        stop = start + linear.out_features
        linear.weight = nn.Parameter(weight[start:stop], requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias[start:stop], requires_grad=False)
        start = stop
    return HalfProduct(weight, bias)


def largest_output(norm: InputNorm, weight: Tensor, bias: Tensor | None) -> float:
    """What no number of `norm(x) @ weight.t() + bias` is above, whatever `x` is.

    A normalised row is `sqrt(width)` long at the most, so by Cauchy and Schwarz its product with a
    channel's weights is at most that times their length.
    """
    wide = weight.float()
    scaled = wide * norm.weight.float()
    largest = scaled.norm(dim=1) * sqrt(weight.shape[1])
    offset = torch.zeros_like(largest) if bias is None else bias.float()
    if norm.bias is not None:
        offset = offset + wide @ norm.bias.float()
    return float((largest + offset.abs()).max()) * ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Queries, keys and values of normalised rows, attention, and the product after it."""

    joined: Product
    out: LastProduct
    heads: tuple[int, int]
    """Of queries, and of keys."""
    size: int
    """Of a head."""
    options: AttentionOptions
    norms: tuple[Tensor, Tensor, float] | None
    """Weights of RMS norms of queries and keys, and their epsilon."""
    kernels: PackedKernels

    @property
    def reads_float8(self) -> bool:
        return isinstance(self.joined, Float8Product)

    @property
    def products(self) -> tuple[Product, LastProduct]:
        return self.joined, self.out

    def of(self, rows: Rows, forward: Forward) -> Tensor:
        """`[n, width]` in and out."""
        joined = self.joined.of(rows)
        if forward.angles is not None:
            self.kernels.norm_and_rotate(
                joined, *forward.angles, heads=self.heads, norms=self.norms
            )
        queries, keys = self.heads
        heads = joined.view(len(joined), -1, self.size).transpose(0, 1)
        query, key, value = torch.split(heads, [queries, keys, keys])
        attended = forward.sequences.attend(query, key, value, self.options).flatten(1)
        if self.options.float8_scale is None:
            return self.out.of(attended)
        assert forward.ones is not None
        return self.out.of(Float8Rows(attended, forward.ones))

    def in_float8(self, norm: InputNorm | None) -> Attention:
        """The same in float8; after rows that come from no `norm`, its last product stays."""
        assert isinstance(self.joined, HalfProduct)
        assert isinstance(self.out, HalfProduct)
        out: LastProduct = self.out
        scale = None
        if norm is not None:
            first = sum(self.heads) * self.size  # of the values' channels
            bias = self.joined.bias
            limit = largest_output(
                norm, self.joined.weight[first:], None if bias is None else bias[first:]
            )
            scale = LARGEST / limit
            out = Float8Product(self.out.weight, self.out.bias, unit=1 / scale)
        joined = Float8Product(self.joined.weight, self.joined.bias)
        options = self.options._replace(float8_scale=scale)
        return replace(self, joined=joined, out=out, options=options)


@dataclass(frozen=True, slots=True)
class GeluFeedForward:
    """Two products and a GELU between them."""

    up: Product
    down: LastProduct
    kernels: PackedKernels
    gelu: Callable[[Tensor], Tensor] | None = None
    """A kernel of its own for it, where the product's does not give the same."""
    float8_scale: float | None = None
    """What the GELU is multiplied by where the product gives it in float8."""

    @property
    def reads_float8(self) -> bool:
        return isinstance(self.up, Float8Product)

    @property
    def products(self) -> tuple[Product, LastProduct]:
        return self.up, self.down

    def of(self, rows: Rows, forward: Forward) -> Tensor:
        """`[n, width]` in and out."""
        if self.float8_scale is not None:
            assert self.kernels.gelu_of_product is not None
            assert forward.ones is not None
            values = self.kernels.gelu_of_product(rows, self.up, self.float8_scale)
            return self.down.of(Float8Rows(values, forward.ones))
        if isinstance(self.up, Float8Product):
            return self.down.of(self.kernels.gelu_float8(self.up.of(rows)))
        if self.gelu is not None:
            return self.down.of(self.gelu(self.up.of(rows)))
        return self.down.of(self.up.gelu_of(rows))

    def in_float8(self, norm: InputNorm | None) -> GeluFeedForward:
        """The same in float8."""
        assert isinstance(self.up, HalfProduct)
        assert isinstance(self.down, HalfProduct)
        up = Float8Product(self.up.weight, self.up.bias)
        scale = None
        if norm is not None and up.bias is not None and self.kernels.gelu_of_product is not None:
            scale = LARGEST / largest_output(norm, self.up.weight, self.up.bias)
        unit = 1.0 if scale is None else 1 / scale
        down = Float8Product(self.down.weight, self.down.bias, unit=unit)
        return GeluFeedForward(up, down, self.kernels, float8_scale=scale)


@dataclass(frozen=True, slots=True)
class GatedFeedForward:
    """`down(silu(gate) * up)`, gate and up in one product."""

    gate_and_up: Product
    down: LastProduct
    kernels: PackedKernels

    @property
    def reads_float8(self) -> bool:
        return isinstance(self.gate_and_up, Float8Product)

    @property
    def products(self) -> tuple[Product, LastProduct]:
        return self.gate_and_up, self.down

    def of(self, rows: Rows, _: Forward) -> Tensor:
        """`[n, width]` in and out."""
        joined = self.gate_and_up.of(rows)
        if isinstance(self.down, Float8Product):
            return self.down.of(self.kernels.silu_times_joined_float8(joined))
        return self.down.of(self.kernels.silu_times_joined(joined))

    def in_float8(self, _: InputNorm | None) -> GatedFeedForward:
        """The same in float8."""
        return GatedFeedForward(_in_float8(self.gate_and_up), _in_float8(self.down), self.kernels)


def _in_float8(product: LastProduct) -> Float8Product:
    assert isinstance(product, HalfProduct)
    return Float8Product(product.weight, product.bias)
