"""The softmax of rows of scores, on the way to bfloat16."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from .compiling import inline
from .numbers import ONE, ROUNDING, bits_of

__all__ = ["LOG2_E", "LOWEST", "put_weights"]

# 2 to the power of -1/2 to 1/2 as 1 + x (E1 + x (E2 + x E3)).
E1, E2, E3 = np.array([0.6931472, 0.2402265, 0.0558282], np.float32)
LOG2_E = np.float32(1.4426950408889634)
LEAST_POWER = np.float32(-126)
MOST_TOTAL = np.float32(2**60)  # of powers, and its inverse the least
LOWEST = np.float32(-1e30)  # the score of a masked key


@inline
def _in_order(bits: Any) -> Any:
    """Bits of a float32 as a whole number that is larger for a larger one, and back."""
    number = np.int32(bits)
    return np.int32(number ^ np.int32(np.int32(number >> np.int32(31)) & np.int32(0x7FFF_FFFF)))


# The sum and what it was rounded to must not be simplified away.
@numba.njit(forceinline=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _power_of_two(x: Any) -> Any:
    """2 to the power of x, from -126 to 126, to 1e-4 of it; as bits."""
    shifted = np.float32(x + ROUNDING)
    f = np.float32(x - np.float32(shifted - ROUNDING))
    p = ONE + f * (E1 + f * (E2 + f * E3))
    return np.uint32(bits_of(p) + np.uint32(bits_of(shifted) << np.uint32(23)))


@inline
def _put_powers(scores: Any, i: Any, columns: Any, scaling: Any, highest: Any, weights: Any) -> Any:
    """2 to the power of a row of scores, times `scaling` and less `highest`, and their sum."""
    total = np.float32(0)
    for j in range(columns):
        power = scores[i, j] * scaling - highest
        # What is not a number is in no order, and stays.
        power = LEAST_POWER if power < LEAST_POWER else power
        power = -LEAST_POWER if power > -LEAST_POWER else power
        bits = np.uint32(np.uint32(_power_of_two(power) + np.uint32(0x8000)) >> np.uint32(16))
        weights[i, j] = np.uint16(bits)
        total += np.uint32(bits << np.uint32(16)).view(np.float32)  # of what they are rounded to
    return total


@inline
def put_weights(
    scores: Any, count: Any, length: Any, scaling: Any, weights: Any, totals: Any
) -> None:
    """Softmax of rows of scores, as bfloat16 and before it is divided by `totals`."""
    columns = (length + 31) // 32 * 32
    for i in range(count):
        for j in range(length, columns):
            scores[i, j] = LOWEST
        total = _put_powers(scores, i, columns, scaling, np.float32(0), weights)
        # Only scores far from 0 have to be shifted, by the largest of them.
        if not ONE / MOST_TOTAL < total < MOST_TOTAL:
            most = np.int32(-(2**31))
            for j in range(length):
                most = max(most, _in_order(bits_of(scores[i, j])))
            highest = np.uint32(_in_order(most)).view(np.float32) * scaling
            total = _put_powers(scores, i, columns, scaling, highest, weights)
        totals[i] = total
