"""Which weights of linear layers other code reads than the layer's own: they must stay readable.

A layer that takes another's place has no weight in its old form. Mamba's code, for one, multiplies
with `dt_proj.weight` itself, and torch does not object to a weight without numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .classes import transformers_classes
from .dispatch import OperatorMode

__all__ = ["layers_read_by_others"]


@contextmanager
def layers_read_by_others(model: nn.Module) -> Iterator[set[nn.Module]]:
    """While the model runs, its linear layers whose weight is read outside their own forward."""
    owners = _owners(model)
    running: list[nn.Module] = []

    def enter(layer: nn.Module, _: Any) -> None:
        running.append(layer)

    def leave(*_: Any) -> None:
        running.pop()

    handles = []
    for layer in {layer for layers in owners.values() for layer in layers}:
        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    try:
        with _Reads(owners, running) as reads:
            yield reads.found
    finally:
        for handle in handles:
            handle.remove()


def _owners(model: nn.Module) -> dict[int, set[nn.Module]]:
    """By the address of a linear layer's weight, the modules that have it, or share it."""
    layers = (nn.Linear, *transformers_classes("pytorch_utils", "Conv1D"))
    found: dict[int, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim < 2:  # a bias, which stays as it was
                continue
            found.setdefault(parameter.data_ptr(), set()).add(module)
    return {
        address: modules
        for address, modules in found.items()
        if address and any(isinstance(module, layers) for module in modules)
    }


class _Reads(OperatorMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Looks at what every operator takes."""

    def __init__(self, owners: Mapping[int, set[nn.Module]], running: list[nn.Module]) -> None:
        super().__init__()
        self._owners = owners
        self._running = running
        self.found: set[nn.Module] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's own signature
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                owners = self._owners.get(leaf.data_ptr(), set())
                if owners and owners.isdisjoint(self._running):
                    self.found |= owners
        return func(*args, **(kwargs or {}))
