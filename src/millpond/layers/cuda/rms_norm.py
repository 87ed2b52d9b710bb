"""RMS norms for a GPU: one kernel that reads its rows once, in place of half a dozen.

Decoder models write the norm out in float32, step by step, and each step is a trip through the
device's memory. torch has it as one operator, and `cuda_kernels` has one for narrow rows too. A
layer is replaced only where that gives what the layer gave. Some models keep their weights less
one; the sum is kept in float32, because half precision has no room for both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["fuse_rms_norms", "rms_norm"]

Norm = Callable[[Tensor, Tensor, float], Tensor]


PROBE_ROWS = 17


TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class _FusedNorm(nn.Module):
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


@torch.no_grad()
def fuse_rms_norms(model: nn.Module, norm: Norm = rms_norm, *, mixed: bool = False) -> int:
    """Replace the RMS norms of a model by `norm`; how many is returned.

    With `mixed` it takes weights in float32 for rows in half precision.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            fused = _fused(child, norm, mixed)
            if fused is not None:
                setattr(parent, name, fused)
                replaced += 1
    return replaced


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
    rows = _probe(weight)
    try:
        expected = layer(rows)
        for scale in scales:
            fused = _FusedNorm(scale, epsilon, norm).eval()
            if _are_close(fused(rows), expected):
                return fused
    except Exception:  # whatever a layer that is called otherwise, or a kernel, objects with
        return None
    return None


def _probe(weight: Tensor) -> Tensor:
    """Rows of very different sizes: what is added before the root shows in the small ones."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-3, 2, PROBE_ROWS)[:, None]
    rows = torch.randn(PROBE_ROWS, len(weight), generator=generator) * sizes
    return rows.to(weight.device, weight.dtype)


def _are_close(found: Tensor, expected: Tensor) -> bool:
    """Whether every row is, by its own length."""
    if found.dtype != expected.dtype:
        return False
    distances = (found.float() - expected.float()).norm(dim=-1)
    return bool((distances <= TOLERANCE[expected.dtype] * expected.float().norm(dim=-1)).all())
