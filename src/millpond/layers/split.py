"""Linear layers of which each of several processes holds a part: one model's ranks.

A layer that is split by its outputs is an ordinary one, only narrower. One that is split by its
inputs gives a part of a sum, and the ranks add their parts up. The scheme is Megatron-LM's
(https://arxiv.org/abs/1909.08053): two sums in a layer of a transformer.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Ranks", "RowSplitLinear", "is_split"]


class Ranks(Protocol):
    """The processes that hold one model, as a layer sees them."""

    def add_up(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum of every rank's part, in this dtype; the part may be overwritten."""


class RowSplitLinear(nn.Module):
    """A linear layer that has some of the inputs: `[…, in / ranks]` to `[…, out]`.

    The bias is every rank's, and added once.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, ranks: Ranks) -> None:
        super().__init__()
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = weight.shape
        self.ranks = ranks

    def forward(self, rows: Tensor) -> Tensor:
        """`[…, in / ranks]` to `[…, out]`, the same on every rank."""
        whole = self.ranks.add_up(self._part(rows), rows.dtype)
        return whole if self.bias is None else whole + self.bias

    def of(self, rows: Any) -> Tensor:
        """The same, as a product of a layer is called."""
        whole: Tensor = self(rows)
        return whole

    def _part(self, rows: Tensor) -> Tensor:
        """In float32 on a GPU, as the sums within one device's product are, and rounded once."""
        if not rows.is_cuda or rows.dtype == torch.float32:
            return functional.linear(rows, self.weight)
        flat = rows.reshape(-1, self.in_features)
        part = torch.mm(flat, self.weight.t(), out_dtype=torch.float32)
        return part.view(*rows.shape[:-1], self.out_features)


def is_split(model: nn.Module) -> bool:
    """Whether other processes hold parts of a model, and have to run when it runs."""
    return any(isinstance(module, RowSplitLinear) for module in model.modules())
