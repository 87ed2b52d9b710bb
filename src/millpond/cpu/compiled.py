"""Access to the kernels that Numba compiles, which are imported when they are first needed."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["as_array", "kernels"]


@cache
def kernels() -> ModuleType:
    """The package `kernels`, and with it Numba. Raises `ImportError` without one that works."""
    return importlib.import_module(".kernels", __package__)


def as_array(rows: Tensor) -> npt.NDArray[Any]:
    """The memory of float32 rows, or of bfloat16 ones as uint16."""
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
