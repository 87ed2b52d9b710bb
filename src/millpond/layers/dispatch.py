"""`OperatorMode`: what looks at every operator while a model is checked, and is never compiled."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperatorMode"]


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
