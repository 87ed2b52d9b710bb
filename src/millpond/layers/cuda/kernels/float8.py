"""A product in float8 whose GELU comes in float8 from the product's own kernel.

torch's product gives bfloat16, and a kernel of its own has to read that, apply the GELU and write
float8: a fifth more than the product takes. Here the scale of what is written is known before: it
comes from the weights (`largest_output`). Needs a GPU that copies by tensor maps (Hopper or newer).

Import this module only where there is a use for it, as `decoder`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..float8 import Float8Product, Float8Rows

__all__ = ["gelu_of_product"]

ROWS, COLUMNS, DEPTH = 128, 128, 128  # of a block
GROUP = 8  # blocks of rows that share the weights they read
WARPS, STAGES = 4, 3


@triton.jit(do_not_specialize=["count"])
def _gelu_of_product(
    rows: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    row_scales: tl.tensor,
    weight_scales: tl.tensor,
    bias: tl.tensor,
    count: tl.tensor,
    out_scale: tl.tensor,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    blocks = tl.cdiv(count, ROWS)
    across: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    group = program // (GROUP * across)
    height = tl.minimum(blocks - group * GROUP, GROUP)
    inside = program % (GROUP * across)
    first_row = (group * GROUP + inside % height) * ROWS
    first_column = inside // height * COLUMNS
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for depth in range(0, WIDTH, DEPTH):
        a = rows.load([first_row, depth])
        b = weight.load([first_column, depth])
        total = tl.dot(a, b.T, total)
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    is_column = column < OUT
    row_scale = tl.load(row_scales + row, mask=row < count, other=0.0)
    column_scale = tl.load(weight_scales + column, mask=is_column, other=0.0)
    offset = tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    x = total * row_scale[:, None] * column_scale[None, :] + offset[None, :]
    bend = x * (0.7978845608028654 + 0.035677408136300125 * x * x)
    turned = tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [bend], dtype=tl.float32, is_pure=True, pack=1
    )
    half = (0.5 * out_scale) * x
    out.store([first_row, first_column], (half + half * turned).to(tl.float8e4nv))


def gelu_of_product(rows: Float8Rows, product: Float8Product, scale: float) -> Tensor:
    """The GELU, by tanh, of a product with rows `[n, in]`, times `scale`, `[n, out]` in e4m3."""
    count, width = rows.values.shape
    weight = product.values.t()
    out = torch.empty(count, len(weight), dtype=torch.float8_e4m3fn, device=weight.device)
    if not count:
        return out
    if product.bias is None:
        raise ValueError("a product without a bias")
    blocks = triton.cdiv(count, ROWS) * triton.cdiv(len(weight), COLUMNS)
    _gelu_of_product[(blocks,)](
        TensorDescriptor.from_tensor(rows.values, [ROWS, DEPTH]),
        TensorDescriptor.from_tensor(weight, [COLUMNS, DEPTH]),
        TensorDescriptor.from_tensor(out, [ROWS, COLUMNS]),
        rows.scales,
        product.scales,
        product.bias,
        count,
        scale,
        WIDTH=width,
        OUT=len(weight),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH,
        GROUP=GROUP,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out
