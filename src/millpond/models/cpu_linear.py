"""Linear layers for a CPU: weights laid out once for its matrix kernels, GELU done in them.

`nn.Linear` lays its weight out anew at every call, which is most of the time of a short query.
torch has operators that do it once, but only under private names: they are looked for, each layer
is compared with the one it replaces, and whatever does not agree stays as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import activations

__all__ = ["fuse_gelus", "prepack_linears"]

PROBE_ROWS = 17
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
_EXACT_GELUS = (nn.GELU, activations.GELUActivation)


class _PrepackedLinear(nn.Linear):
    """A linear layer whose weight has only a dtype and a shape; its numbers are in `_packed`."""

    _packed: Tensor
    _then = "none"  # what the kernel does to each element on its way out

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
        multiply = _opaque_linear if torch.compiler.is_compiling() else _linear
        return multiply(input, self._packed, self.bias, self._then)


def _linear(input: Tensor, packed: Tensor, bias: Tensor | None, then: str) -> Tensor:
    out = _operators()._linear_pointwise(input, packed, bias, then, [], "none")
    assert isinstance(out, Tensor)
    return out


# The same for a compiler, whose own rules for the operator want weights that are constants.
_opaque_linear = torch.library.custom_op("millpond::linear", _linear, mutates_args=())


@_opaque_linear.register_fake
def _(input: Tensor, packed: Tensor, bias: Tensor | None, then: str) -> Tensor:
    return input.new_empty(*input.shape[:-1], packed.shape[0])


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


@torch.no_grad()
def fuse_gelus(model: nn.Module) -> int:
    """Let prepacked layers do the exact GELU that follows them; how many is returned.

    Which layer an activation follows is in the code of their parent, so only a parent that has
    these two and nothing else is looked at, and it has to give what it gave before.
    """
    return sum(_fused(parent) for parent in model.modules())


def _fused(parent: nn.Module) -> bool:
    children = dict(parent.named_children())
    linears = [c for c in children.values() if type(c) is _PrepackedLinear and c._then == "none"]
    gelus = [name for name, child in children.items() if _is_exact_gelu(child)]
    if len(children) != 2 or len(linears) != 1 or len(gelus) != 1:
        return False
    (linear,), (name,) = linears, gelus
    try:
        rows = _probe(linear)
        expected = parent(rows)
        linear._then = "gelu"
        setattr(parent, name, nn.Identity())
        agrees = _are_close(parent(rows), expected)
    except Exception:  # whatever a parent that is called otherwise, or a kernel, objects with
        agrees = False
    if not agrees:
        linear._then = "none"
        setattr(parent, name, children[name])
    return agrees


def _is_exact_gelu(module: nn.Module) -> bool:
    # Subclasses do something of their own.
    return type(module) in _EXACT_GELUS and getattr(module, "approximate", "none") == "none"


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
    rows = _probe(layer)
    return _are_close(packed(rows), layer(rows))


def _probe(layer: nn.Linear) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(PROBE_ROWS, layer.in_features, generator=generator)
    return rows.to(layer.weight.dtype)


def _are_close(found: Tensor, expected: Tensor) -> bool:
    distance = (found.float() - expected.float()).norm()
    return bool(distance <= TOLERANCE[expected.dtype] * expected.float().norm())
