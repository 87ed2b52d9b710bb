"""What looks at a model while it is checked: at its operators, and at which modules are running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperatorMode", "running"]

Name = TypeVar("Name")


@contextmanager
def running(modules: Mapping[nn.Module, Name]) -> Iterator[list[Name]]:
    """What these modules are called whose forward is running, the innermost last."""
    names: list[Name] = []

    def enter(name: Name, *_: Any) -> None:
        names.append(name)

    def leave(*_: Any) -> None:
        names.pop()

    handles = []
    for module, name in modules.items():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


class OperatorMode(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """A dispatch mode without torch's guard against being compiled.

    The guard imports the whole of torch._dynamo at the mode's first operator: seconds, for a
    check of milliseconds. Derived classes have the same signature of `__torch_dispatch__`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch's own name
        return False
