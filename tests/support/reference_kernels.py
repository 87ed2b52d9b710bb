"""The kernels of a packed forward pass in torch's operators, for tests without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from millpond.layers.cuda.float8 import Float8Product, Float8Rows, quantise_rows
from millpond.layers.cuda.kernels.packed import LayerNorm, PackedKernels
from millpond.layers.cuda.rotary import rotate

__all__ = ["REFERENCE"]


def add_layer_norm(
    rows: Tensor, residual: Tensor, norm: LayerNorm, *, float8: bool = False
) -> tuple[Tensor, Float8Rows | None]:
    total = rows.double() + residual.double()
    out = functional.layer_norm(
        total, total.shape[1:], norm.weight.double(), norm.bias.double(), norm.epsilon
    )
    return out.to(rows.dtype), quantise_rows(out) if float8 else None


def embedding_norm(
    ids: Tensor,
    positions: Tensor,
    tables: tuple[Tensor, Tensor, Tensor | None],
    norm: LayerNorm,
    *,
    types: Tensor | None = None,
    float8: bool = False,
) -> tuple[Tensor, Float8Rows | None]:
    words, places, kinds = tables
    others = places[positions].double()
    if kinds is not None:
        others = others + (kinds[0] if types is None else kinds[types])
    return add_layer_norm(words[ids], others, norm, float8=float8)


def add_rms_norm(
    rows: Tensor | None, residual: Tensor, weight: Tensor, epsilon: float, *, float8: bool = False
) -> Tensor | Float8Rows:
    total = residual.double() if rows is None else residual.double() + rows
    residual.copy_(total)
    out = functional.rms_norm(total, weight.shape, weight.double(), epsilon)
    return quantise_rows(out) if float8 else out.to(residual.dtype)


def norm_and_rotate(
    joined: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: tuple[int, int],
    norms: tuple[Tensor, Tensor, float] | None,
) -> None:
    rows = joined[:, : sum(heads) * cos.shape[1]].view(len(cos), -1, cos.shape[1])
    parts = list(torch.split(rows.double(), list(heads), dim=1))
    if norms is not None:
        parts = [
            functional.rms_norm(part, weight.shape, weight.double(), norms[2])
            for part, weight in zip(parts, norms[:2], strict=True)
        ]
    turned = rotate(
        torch.cat(parts, 1).transpose(0, 1)[None], cos.double()[None], sin.double()[None]
    )
    rows.copy_(turned[0].transpose(0, 1))


def silu_times_joined(joined: Tensor) -> Tensor:
    gate, up = joined.double().chunk(2, dim=1)
    return (functional.silu(gate) * up).to(joined.dtype)


def silu_times_joined_float8(joined: Tensor) -> Float8Rows:
    gate, up = joined.double().chunk(2, dim=1)
    return quantise_rows(functional.silu(gate) * up)


def gelu_float8(rows: Tensor) -> Float8Rows:
    return quantise_rows(functional.gelu(rows.double()))


def gelu_of_product(rows: Float8Rows, product: Float8Product, scale: float) -> Tensor:
    out = functional.gelu(product.of(rows).float()) * scale
    return out.clamp(-448, 448).to(torch.float8_e4m3fn)


REFERENCE = PackedKernels(
    add_layer_norm=add_layer_norm,
    embedding_norm=embedding_norm,
    add_rms_norm=add_rms_norm,
    norm_and_rotate=norm_and_rotate,
    silu_times_joined=silu_times_joined,
    silu_times_joined_float8=silu_times_joined_float8,
    gelu_float8=gelu_float8,
    gelu_of_product=gelu_of_product,
)
