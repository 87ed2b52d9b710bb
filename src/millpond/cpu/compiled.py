"""Access to the kernels that Numba compiles, which are imported when they are first needed."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InvalidOption

__all__ = ["as_array", "kernels"]

NOT_INSTALLED = (
    "dtype='int8' needs Numba, which compiles its kernels: pip install \"millpond[cpu]\" "
    "({reason}); or leave dtype at 'auto'"
)


@cache
def kernels() -> ModuleType:
    """The module `kernels`. Raises `InvalidOption` without Numba."""
    try:
        return importlib.import_module(".kernels", __package__)
    except ImportError as error:  # Numba, which takes a while to import
        raise InvalidOption(NOT_INSTALLED.format(reason=error)) from error


def as_array(rows: Tensor) -> npt.NDArray[Any]:
    """The memory of float32 rows, or of bfloat16 ones as uint16."""
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
