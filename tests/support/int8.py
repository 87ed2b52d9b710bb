"""A mark for tests that need int8 products: the processor's, and Numba."""

from __future__ import annotations

import pytest

from millpond import InvalidOption
from millpond.layers.cpu.int8 import product

__all__ = ["needs_int8"]


def has_int8() -> bool:
    try:
        product.check_int8()
    except InvalidOption:
        return False
    return True


needs_int8 = pytest.mark.skipif(not has_int8(), reason="no int8 products here, or no Numba")
