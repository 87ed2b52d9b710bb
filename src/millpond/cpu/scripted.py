"""Functions as TorchScript: one call of Python for many operators.

An operator that is called from Python releases the interpreter's lock while it runs, and waits
for it afterwards: beside a thread that is busy in Python, such as an event loop's, for up to 5 ms.
TorchScript runs a whole function without the lock. It is part of torch: no compiler is imported.

A module is compiled as a whole, from its source. So its functions keep to what TorchScript knows,
and refer to each other and to torch alone. Where torch cannot compile them they run as Python:
either way the operators and their order are the same, so results are bitwise identical.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch

from ..errors import first_line

__all__ = ["is_compiled", "run"]

logger = logging.getLogger("millpond")


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module of such functions returns."""
    compiled = _compiled(function.__module__)
    if compiled is None:
        return function(*arguments)
    # For this thread alone. Optimised, torch would make it anew for every shape it sees.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return getattr(compiled, function.__name__)(*arguments)


def is_compiled(module: ModuleType) -> bool:
    """Whether a module's functions run as TorchScript."""
    return _compiled(module.__name__) is not None


@cache
def _compiled(name: str) -> Any:
    """The functions of a module, or None where they cannot be compiled."""
    try:
        source = "".join(inspect.getsource(each) for each in _functions(sys.modules[name]))
        return torch.jit.CompilationUnit(source)
    except Exception as error:  # no source, an operator that is not there, no TorchScript
        logger.debug("the functions of %s run as Python: %s", name, first_line(error))
        return None


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [
        each
        for each in vars(module).values()
        if inspect.isfunction(each) and each.__module__ == module.__name__
    ]
