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
from .dispatch import OperatorMode, running

__all__ = ["layers_read_by_others"]


@contextmanager
def layers_read_by_others(model: nn.Module) -> Iterator[set[nn.Module]]:
    """While the model runs, its linear layers whose weight is read outside their own forward."""
    owners = _owners(model)
    layers = {layer: layer for shared in owners.values() for layer in shared}
    with running(layers) as path, _Reads(owners, path) as reads:
        yield reads.found


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

    def __init__(self, owners: Mapping[int, set[nn.Module]], path: list[nn.Module]) -> None:
        super().__init__()
        self._owners = owners
        self._running = path
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
