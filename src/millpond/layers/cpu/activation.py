"""Batch-invariant activations for a CPU: an element's bits do not depend on where it stands.

torch's kernels work through a tensor in whole vectors, and what is left at its end, or at the
end of a thread's share, one element at a time. For some activations the two ways round
differently, so an element's bits would depend on how many rows are beside its own. Here the
kernels only ever see small pieces of whole vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..classes import transformers_classes
from ..replace import replace_children

__all__ = ["replace_activations"]

# A multiple of two vectors of any processor and dtype, which is what the kernels take at once.
VECTORS = 128
# Below the size at which torch divides a tensor among threads, which is 32768.
PIECE = 16384

# Measured: these round differently. The exact GELU is oneDNN's, and ReLU and tanh have one way.
_SHAPE_DEPENDENT = (nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Mish)
_SHAPE_DEPENDENT_NAMES = ("SiLUActivation", "GELUTanh", "QuickGELUActivation", "MishActivation")


class _InvariantActivation(nn.Module):
    """An elementwise activation, a piece of whole vectors at a time."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        elements = input.reshape(-1)
        missing = -len(elements) % VECTORS
        if missing:
            elements = pad(elements, (0, missing))
        out = torch.empty_like(elements)
        for piece, place in zip(torch.split(elements, PIECE), torch.split(out, PIECE), strict=True):
            place.copy_(self.activation(piece))
        return out[: input.numel()].view(input.shape)


def replace_activations(model: nn.Module) -> int:
    """Replace the activations of a model on the CPU that are not batch-invariant.

    How many is returned.
    """
    return replace_children(
        model, lambda child: _InvariantActivation(child) if _depends_on_shape(child) else None
    )


def _depends_on_shape(activation: nn.Module) -> bool:
    # Subclasses do something of their own.
    if type(activation) is nn.GELU:
        return bool(activation.approximate == "tanh")
    if type(activation) in _SHAPE_DEPENDENT:
        return True
    return type(activation) in transformers_classes("activations", *_SHAPE_DEPENDENT_NAMES)
