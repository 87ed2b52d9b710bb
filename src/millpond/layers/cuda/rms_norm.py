"""RMS norms for a GPU: one kernel that reads its rows once, in place of half a dozen.

Decoder models write the norm out in float32, step by step, and each step is a trip through the
device's memory. torch has it as one operator, and `kernels.decoder` has one for narrow rows too. A
layer is replaced only where that gives what the layer gave. Some models keep their weights less
one; the sum is kept in float32, because half precision has no room for both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..replace import PROBE_ROWS, TOLERANCE, first_equal, probe_rows, replace_children

__all__ = ["FusedNorm", "fuse_rms_norms", "rms_norm"]

Norm = Callable[[Tensor, Tensor, float], Tensor]


class FusedNorm(nn.Module):
    """The norm of `[…, size]` rows times a weight, rounded once at the end."""

    def __init__(self, weight: Tensor, epsilon: float, norm: Norm) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.epsilon = epsilon
        self._norm = norm

    def forward(self, rows: Tensor) -> Tensor:
        return self._norm(rows, self.weight, self.epsilon)


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """torch's own operator."""
    return functional.rms_norm(rows, weight.shape, weight, epsilon)


def fuse_rms_norms(model: nn.Module, norm: Norm = rms_norm, *, mixed: bool = False) -> int:
    """Replace the RMS norms of a model by `norm`; how many is returned.

    With `mixed` it takes weights in float32 for rows in half precision.
    """
    return replace_children(model, partial(_fused, norm=norm, mixed=mixed))


def _fused(layer: nn.Module, norm: Norm, mixed: bool) -> nn.Module | None:
    """What takes the layer's place, or None."""
    weight = getattr(layer, "weight", None)
    epsilon = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    is_norm = type(layer).__name__.endswith("RMSNorm") and not list(layer.children())
    if not is_norm or not isinstance(weight, Tensor) or not isinstance(epsilon, float):
        return None
    if weight.ndim != 1 or weight.dtype not in TOLERANCE or type(layer) is nn.RMSNorm:
        return None
    scales = [weight.detach()]
    if mixed or weight.dtype == torch.float32:
        scales.append(weight.detach().float() + 1)
    candidates = (FusedNorm(scale, epsilon, norm).eval() for scale in scales)
    return first_equal(layer, candidates, _probe(weight), by_row=True)


def _probe(weight: Tensor) -> Tensor:
    """Rows of very different sizes: what is added before the root shows in the small ones."""
    sizes = torch.logspace(-3, 2, PROBE_ROWS)[:, None]
    rows = probe_rows(PROBE_ROWS, len(weight), dtype=torch.float32) * sizes
    return rows.to(weight.device, weight.dtype)
