"""The functions of `encoder_functions` as TorchScript: one call of Python for many operators.

An operator that is called from Python releases the interpreter's lock while it runs, and waits
for it afterwards: beside a thread that is busy in Python, such as an event loop's, for up to 5 ms.
TorchScript runs a whole function without the lock. It is part of torch: no compiler is imported.

Where torch cannot compile them they run as Python: the same operators in the same order.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch

from ...errors import first_line
from . import encoder_functions

__all__ = ["is_compiled", "run"]

logger = logging.getLogger("millpond")


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of `encoder_functions` returns."""
    compiled = _compiled(encoder_functions)
    if compiled is None:
        return function(*arguments)
    # For this thread alone. Optimised, torch would make it anew for every shape it sees.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return getattr(compiled, function.__name__)(*arguments)


def is_compiled() -> bool:
    """Whether they run as TorchScript."""
    return _compiled(encoder_functions) is not None


@cache
def _compiled(module: ModuleType) -> Any:
    """The functions of a module, or None where they cannot be compiled."""
    try:
        source = "".join(inspect.getsource(each) for each in _functions(module))
        return torch.jit.CompilationUnit(source)
    except Exception as error:  # no source, an operator that is not there, no TorchScript
        logger.debug("encoder layers run as Python: %s", first_line(error))
        return None


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [
        each
        for each in vars(module).values()
        if inspect.isfunction(each) and each.__module__ == module.__name__
    ]
