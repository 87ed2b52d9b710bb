"""How Numba compiles the kernels, and keeps them on disk.

Numba compiles a kernel again when the file changes that it is in. What it calls is in other files,
so here its name on disk has a digest of all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy.typing as npt
from llvmlite import binding
from numba import types
from numba.extending import intrinsic

__all__ = [
    "OPTIONS",
    "Array",
    "c_function",
    "has_features",
    "inline",
    "kernel",
    "use_widest_vectors",
]

Array = npt.NDArray[Any]

# Not numbers that are taken to be finite: a row that is not stays so.
FAST = {"arcp", "contract", "nsz", "reassoc"}

OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}


def _digest() -> str:
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


DIGEST = _digest()


def kernel(function: Callable[..., Any]) -> Any:
    """Compiled when first called, and kept on disk where there is a place for it."""
    try:
        return numba.njit(cache=True, **OPTIONS)(_named(function))
    except RuntimeError:  # no folder that may be written to
        return numba.njit(**OPTIONS)(function)


def c_function(function: Callable[..., Any]) -> Any:
    """Compiled at once and kept on disk like that, for C to call with an address."""
    kind, options = types.void(types.voidptr), {"fastmath": FAST, "error_model": "numpy"}
    try:
        return numba.cfunc(kind, cache=True, **options)(_named(function))
    except RuntimeError:
        return numba.cfunc(kind, **options)(function)


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__qualname__ = f"{function.__name__}_{DIGEST}"
    return function


def inline(function: Callable[..., Any]) -> Any:
    """Compiled as part of what calls it."""
    return numba.njit(forceinline=True, **OPTIONS)(function)


@intrinsic
def use_widest_vectors(context: Any) -> Any:
    """For the function it is called in: 512 bits where there are, of which LLVM takes 256."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite knows only some attributes by name.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


def has_features(*names: str) -> bool:
    """Whether this processor has what LLVM calls so.

    Instructions are fatal where they are not there, so Numba must not have been configured for
    another processor.
    """
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return False
    features = binding.get_host_cpu_features()
    return all(features.get(name) for name in names)
