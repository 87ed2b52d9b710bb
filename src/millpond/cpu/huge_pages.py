"""Weights in huge pages: a pass over few tokens reads each of them once, and looks up its page.

In pages of 4 KiB the 24 products of a 12-token query of all-MiniLM-L6-v2 take about a tenth longer
than in pages of 2 MiB, in a virtual machine, where a lookup costs most. Linux puts memory that is
in use into huge pages when it is asked to (`MADV_COLLAPSE`, since 6.1); elsewhere nothing changes.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

__all__ = ["use_huge_pages"]

HUGE_PAGE = 2**21  # of x86, and of Arm with pages of 4 KiB
MADV_COLLAPSE = 25
MOST_SECONDS = 0.1  # 1 GiB takes about 0.3, and more where memory is in pieces


def use_huge_pages(ranges: Iterable[tuple[int, int]]) -> int:
    """Put memory, given as addresses and bytes, into huge pages; how many were made is returned.

    What else is in a page of 2 MiB comes along. Values stay as they are, and may be read meanwhile.
    """
    if not sys.platform.startswith("linux"):
        return 0
    pages = {
        page
        for address, size in ranges
        for page in range(address // HUGE_PAGE, -(-(address + size) // HUGE_PAGE))
    }
    end = time.perf_counter() + MOST_SECONDS
    made = 0
    for page in sorted(pages):
        if time.perf_counter() > end:
            break
        made += _madvise()(page * HUGE_PAGE, HUGE_PAGE, MADV_COLLAPSE) == 0
    return made


@cache
def _madvise() -> Any:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return madvise
