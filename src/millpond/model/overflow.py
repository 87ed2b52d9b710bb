"""Products that overflow on an ordinary text.

They need not show in a vector: a norm over what overflowed gives zeros, so they are looked for at
load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import InvalidCheckpoint, UnsupportedModel
from ..layers.dispatch import OperatorMode, running

__all__ = ["DoesNotFit", "refuse_overflow"]

# Values of a trained model are far below it, and the sum of squares of a row of them is finite.
_LARGEST = 1e15
_PRODUCTS = frozenset(
    {"addmm", "baddbmm", "bmm", "convolution", "embedding", "linear", "matmul", "mm"}
)


class DoesNotFit(UnsupportedModel):
    """The model is sound, but its numbers are too large for the precision it was to run in."""


@torch.no_grad()
def refuse_overflow(model: nn.Module, run: Callable[[], Tensor], *, folder: Path) -> None:
    """Raise where values overflow, or nearly do, while `run` computes hidden states of a text.

    `DoesNotFit` in float16, whose range is small, and `InvalidCheckpoint` in any other precision.
    """
    names = {module: name for name, module in model.named_modules() if name}
    with running(names) as path, _Products(path) as products:
        try:
            hidden = run()
        except Exception:  # whatever stands in its way here is met again, and reported, without
            return
    place = products.overflow or (None if _is_moderate(hidden) else "the last layer")
    if place is None:
        return
    if hidden.dtype == torch.float16:
        raise DoesNotFit(
            f"{folder}: values in {place} overflow in float16; use dtype='bfloat16' or 'float32'"
        )
    raise InvalidCheckpoint(
        f"{folder}: values in {place} are above {_LARGEST:.0e} for an ordinary text, so that "
        "attention and norms overflow; its weights are damaged, or scaled for another "
        "configuration"
    )


class _Products(OperatorMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Looks at every product, and at what goes into attention that is one operator."""

    def __init__(self, path: Sequence[str]) -> None:
        super().__init__()
        self._path = path
        self.overflow: str | None = None
        """The innermost module where values were too large, and what computed them."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's own signature
        result = func(*args, **(kwargs or {}))
        if self.overflow is None:
            name = func.overloadpacket.__name__
            looked_at = result if name in _PRODUCTS else args if "attention" in name else ()
            tensors = [leaf for leaf in tree_leaves(looked_at) if isinstance(leaf, Tensor)]
            if not all(map(_is_moderate, tensors)):
                self.overflow = self._path[-1] if self._path else "its forward"
        return result


def _is_moderate(tensor: Tensor) -> bool:
    # From above alone: masks have the lowest number there is, or minus infinity.
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(tensor.max() < _LARGEST)  # false for NaN
