"""Linear layers for a CPU, with their weights laid out once for its matrix kernels.

`nn.Linear` lays its weight out anew at every call, which is most of the time of a short query.
torch has operators that do it once, but only under private names: they are looked for, each layer
is compared with the one it replaces, and whatever does not agree stays as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["prepack_linears"]

PROBE_ROWS = 17
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class _PrepackedLinear(nn.Linear):
    """A linear layer whose weight has only a dtype and a shape; its numbers are in `_packed`."""

    _packed: Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> _PrepackedLinear:
        has_bias = linear.bias is not None
        size = linear.in_features, linear.out_features
        made = cls(*size, bias=has_bias, device="meta", dtype=linear.weight.dtype)
        made.weight.requires_grad_(False)
        made.bias = linear.bias
        # Kept out of the module's own bookkeeping: such a tensor can be neither copied nor saved.
        made.__dict__["_packed"] = _operators()._reorder_linear_weight(linear.weight.detach(), None)
        return made.eval()

    def forward(self, input: Tensor) -> Tensor:
        out = _operators()._linear_pointwise(input, self._packed, self.bias, "none", [], "")
        assert isinstance(out, Tensor)
        return out


def _operators() -> Any:
    return torch.ops.mkldnn


@torch.no_grad()
def prepack_linears(model: nn.Module) -> int:
    """Replace the linear layers of a model on the CPU; how many is returned."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            packed = _prepacked(child)
            if packed is not None:
                setattr(parent, name, packed)
                replaced += 1
    return replaced


def _prepacked(layer: nn.Module) -> nn.Module | None:
    # Subclasses of nn.Linear do something of their own.
    if type(layer) is not nn.Linear or layer.weight.dtype not in TOLERANCE:
        return None
    try:
        packed = _PrepackedLinear.of(layer)
        agrees = _agree(layer, packed)
    except (AttributeError, RuntimeError):  # no such operator, or not for this processor
        return None
    return packed if agrees else None


def _agree(layer: nn.Linear, packed: nn.Module) -> bool:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(PROBE_ROWS, layer.in_features, generator=generator).to(layer.weight.dtype)
    expected, found = layer(rows).float(), packed(rows).float()
    distance = (found - expected).norm()
    return bool(distance <= TOLERANCE[layer.weight.dtype] * expected.norm())
