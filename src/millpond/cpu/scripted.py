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
    compiled = _compiled(function)
    if compiled is None:
        return function(*arguments)
    # For this thread alone. Optimised, torch would make it anew for every shape it sees. Without
    # `torch.jit.optimized_execution`, whose steps take a third of a short function's time.
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        return compiled(*arguments)
    finally:
        torch._C._set_graph_executor_optimize(before)


def is_compiled(module: ModuleType) -> bool:
    """Whether a module's functions run as TorchScript."""
    return all(_compiled(function) is not None for function in _functions(module))


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function as TorchScript, or None where it is Python."""
    unit = _unit(function.__module__)
    return None if unit is None else getattr(unit, function.__name__)


@cache
def _unit(module: str) -> torch.jit.CompilationUnit | None:
    """The functions of a module, or None where they cannot be compiled."""
    try:
        # As `run` does it: these names are private, and it fails here where they are gone.
        torch._C._set_graph_executor_optimize(torch._C._get_graph_executor_optimize())
        source = "".join(inspect.getsource(each) for each in _functions(sys.modules[module]))
        return torch.jit.CompilationUnit(source)
    except Exception as error:  # no source, an operator that is not there, no TorchScript
        logger.debug("the functions of %s run as Python: %s", module, first_line(error))
        return None


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [
        each
        for each in vars(module).values()
        if inspect.isfunction(each) and each.__module__ == module.__name__
    ]
