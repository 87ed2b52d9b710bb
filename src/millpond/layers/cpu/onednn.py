"""oneDNN's matrix product with a weight that is laid out once, by torch's private operators.

A product is whole, or a sum of shorter ones: the weight is a sequence of pieces that follow each
other, most often one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["OPERATORS", "memory_of", "multiply", "pack"]

# What a product in pieces makes at a time: its tensors for each piece are new memory, and above
# 32 MB the operating system's own, which takes longer to get than the product.
MOST_NUMBERS = 2**23


OPERATORS: Any = torch.ops.mkldnn
"""Where torch keeps them. What is not there raises `AttributeError` when it is asked for."""


def pack(weight: Tensor) -> Tensor:
    """A weight `[outputs, columns]` as the kernels take it."""
    packed = OPERATORS._reorder_linear_weight(weight.contiguous(), None)
    assert isinstance(packed, Tensor)
    return packed


def memory_of(packed: Tensor) -> tuple[int, int] | None:
    """Address and bytes of a packed weight; None where torch does not tell."""
    try:
        return OPERATORS.data_ptr(packed), OPERATORS._nbytes(packed)
    except (AttributeError, RuntimeError):  # private names
        return None


def multiply(input: Tensor, packed: Sequence[Tensor], bias: Tensor | None, post_op: str) -> Tensor:
    """`[…, columns]` times the weight, with `post_op` ("none" or "gelu") applied to each output."""
    missing = sum(weight.shape[1] for weight in packed) - input.shape[-1]
    if missing:
        input = functional.pad(input, (0, missing))
    if len(packed) > 1:
        return _in_pieces(input, packed, bias, post_op)
    out = OPERATORS._linear_pointwise(input, packed[0], bias, post_op, [], "none")
    assert isinstance(out, Tensor)
    return out


def _in_pieces(
    input: Tensor, packed: Sequence[Tensor], bias: Tensor | None, post_op: str
) -> Tensor:
    rows, outputs = input.reshape(-1, input.shape[-1]), packed[0].shape[0]
    parts = -(-len(rows) * outputs // MOST_NUMBERS)
    if parts <= 1:
        return _sum_of_pieces(input, packed, bias, post_op)
    out = input.new_empty(*input.shape[:-1], outputs)
    places = torch.tensor_split(out.view(-1, outputs), parts)
    for part, place in zip(torch.tensor_split(rows, parts), places, strict=True):
        place.copy_(_sum_of_pieces(part, packed, bias, post_op))
    return out


def _sum_of_pieces(
    input: Tensor, packed: Sequence[Tensor], bias: Tensor | None, post_op: str
) -> Tensor:
    widths = [weight.shape[1] for weight in packed]
    if len(set(widths)) == 1:  # the kernel wants each piece's rows together: one copy for all
        parted = input.reshape(*input.shape[:-1], len(packed), -1)
        pieces = parted.movedim(-2, 0).contiguous().unbind()
    else:
        pieces = torch.split(input, widths, dim=-1)
    out = multiply(pieces[0], packed[:1], bias, "none")
    for piece, weight in zip(pieces[1:], packed[1:], strict=True):
        # Added before the kernel rounds: one rounding for each piece, not two.
        out = OPERATORS._linear_pointwise.binary(piece, out, weight, None, "add")
    return torch.ops.aten.gelu_(out) if post_op == "gelu" else out
