"""Numbers as kernels read and write them: float32, or bfloat16 as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from .compiling import OPTIONS, inline

__all__ = ["HALF", "ONE", "ROUNDING", "bits_of", "loaded", "rounded"]

HALF, ONE = np.float32(0.5), np.float32(1)

# Added to a small number, it leaves that number, rounded, in the low bits.
ROUNDING = np.float32(3 * 2**22)


@inline
def bits_of(number: Any) -> Any:
    return np.float32(number).view(np.uint32)


def loaded(stored: Any) -> Any:
    """A stored number as float32."""
    raise NotImplementedError


@overload(loaded, strict=False, jit_options={"forceinline": True, **OPTIONS})
def _(stored: Any) -> Any:
    if stored == types.uint16:
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored


def rounded(number: Any, out: Any) -> Any:
    """A float32 as `out` stores it."""
    raise NotImplementedError


@overload(rounded, strict=False, jit_options={"forceinline": True, **OPTIONS})
def _(number: Any, out: Any) -> Any:
    if out.dtype == types.uint16:

        def to_bfloat16(number: Any, out: Any) -> Any:
            bits = bits_of(number)
            to_even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            return np.uint16(np.uint32(bits + to_even + np.uint32(0x7FFF)) >> np.uint32(16))

        return to_bfloat16
    return lambda number, out: number
