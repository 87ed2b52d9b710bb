"""Attention on a CPU by the kernel that Numba compiles (`cpu.kernels`), for texts that are long.

A sequence's kernel, ours or torch's, depends on its own length alone, so its bits do not depend on
the others of a pass.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..cpu.compiled import kernels
from ..cpu.openmp import openmp_library
from ..errors import first_line
from ..locks import fork_safe

__all__ = [
    "LEAST_LENGTH",
    "Kernel",
    "Places",
    "attend_compiled",
    "can_be_compiled",
    "load_kernel",
    "without_loading_kernels",
]

logger = logging.getLogger("millpond")

# Shorter texts are queries most of all, whose layers are one call where torch's kernel attends.
# From here on a kernel of ours saves more than a call for each layer costs.
LEAST_LENGTH = 48
HEAD_STEP = 32  # elements of a head that the kernel takes at once
LEAST_OPERATIONS = 1e7  # that are worth a second thread: some 70 µs on a Zen 4
PROBE_LENGTHS = (1, 31, 64, 150)
MOST_DISTANCE = 5e-3  # from float32, relative to it; torch's kernel is 2e-3 off, this one as well
FAR = 2**40  # a window that hides nothing

Kernel = Callable[[int, int], None]
"""Takes the address of `kernels.AttentionArguments`, and the number of threads."""


class Places(NamedTuple):
    """Of each sequence its first row, its length, and the first row of what comes of it; int64."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    out: npt.NDArray[np.int64]


def can_be_compiled(dtype: torch.dtype, size: int) -> bool:
    """Whether heads of this size may attend by the kernel; Numba is not imported for it."""
    return dtype == torch.bfloat16 and size % HEAD_STEP == 0 and _suits_processor()


@cache
def _suits_processor() -> bool:
    """With matrix units torch's kernel makes use of those."""
    has_pairs = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(has_pairs()) and not has_tiles() and find_spec("numba") is not None


def attend_compiled(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    places: Places,
    *,
    scaling: float | None,
    window: int | None = None,
    queries: int = FAR,
) -> None:
    """Put into `out` `[…, heads, size]` what the first `queries` tokens of each sequence attend to.

    Queries, keys and values are bfloat16 `[heads, rows, size]`. Keys may have fewer heads, which
    neighbours share.
    """
    compiled = kernels()
    rows = [row if _is_in_runs(row) else row.contiguous() for row in (query, key, value)]
    heads, _, size = query.shape
    longest = int(places.lengths.max())
    computed = np.minimum(places.lengths, queries)
    seen = np.minimum(places.lengths, 2 * window - 1) if window else places.lengths
    operations = 4 * heads * size * int(np.dot(computed, seen))
    threads = torch.get_num_threads() if operations >= LEAST_OPERATIONS else 1
    room_bytes = compiled.room_bytes(longest, size)
    room = torch.empty(threads * room_bytes, dtype=torch.uint8)
    starts, lengths, first_rows = map(np.ascontiguousarray, places)
    arguments = compiled.AttentionArguments(
        *(number for each in rows for number in _place(each)),
        heads=heads,
        heads_a_key=heads // key.shape[0],
        size=size,
        scaling=int(np.float64(size**-0.5 if scaling is None else scaling).view(np.int64)),
        window=window or FAR,
        starts_at=starts.ctypes.data,
        lengths_at=lengths.ctypes.data,
        places_at=first_rows.ctypes.data,
        sequences=len(starts),
        longest=longest,
        queries=queries,
        out_at=out.data_ptr(),
        room_at=room.data_ptr(),
        room_bytes=room_bytes,
    )
    numbers = np.array(arguments, np.int64)
    kernel(numbers.ctypes.data, threads)


def _is_in_runs(rows: Tensor) -> bool:
    """Whether a head's numbers are neighbours, and the steps whole pairs."""
    head_step, row_step, step = rows.stride()
    return step == 1 and head_step % 2 == 0 and row_step % 2 == 0


def _place(rows: Tensor) -> tuple[int, int, int]:
    head_step, row_step, _ = rows.stride()
    return rows.data_ptr(), row_step // 2, head_step // 2


_loading = fork_safe(threading.Lock())
_found: list[Kernel | None] = []  # once it was looked for


@dataclass
class LeftOut:
    """What a thread did without meanwhile."""

    kernel: bool = False


class _ThisThread(threading.local):
    leaves_out: LeftOut | None = None


_this_thread = _ThisThread()


@contextmanager
def without_loading_kernels() -> Iterator[LeftOut]:
    """For checks at load: texts attend by torch here, unless the kernel was read before.

    It takes half a second to import Numba, which a short text has no use for. The kernel is checked
    when it is read, by itself.
    """
    before, left_out = _this_thread.leaves_out, LeftOut()
    _this_thread.leaves_out = left_out
    try:
        yield left_out
    finally:
        _this_thread.leaves_out = before


def load_kernel() -> Kernel | None:
    """The kernel, compiled or read from disk at the first call, which takes a while."""
    if not _found:
        if _this_thread.leaves_out is not None:
            _this_thread.leaves_out.kernel = True
            return None
        with _loading:
            if not _found:
                _found.append(_read())
    return _found[0]


def _read() -> Kernel | None:
    try:
        compiled = kernels()
        if not compiled.has_dot_products():
            return None
        kernel = _with_threads(compiled.attend_by_dot_products())
        problem = _problem(kernel)
    except Exception as error:  # no Numba that works
        problem = first_line(error)
    if problem is not None:
        logger.warning("texts attend by torch's kernel alone: %s", problem)
        return None
    return kernel


def _problem(kernel: Kernel) -> str | None:
    """What is wrong with what it gives for noise: far from torch's in float32, or a text's bits
    depend on the others."""
    noise = torch.randn(
        sum(PROBE_LENGTHS), 3, HEAD_STEP, generator=torch.Generator().manual_seed(0)
    )
    joined, lengths = noise.bfloat16(), list(PROBE_LENGTHS)

    def attended(rows: Tensor, lengths: list[int]) -> Tensor:
        counts = np.array(lengths, np.int64)
        starts, out = np.cumsum(counts) - counts, rows.new_empty(len(rows), 1, HEAD_STEP)
        query, key, value = rows.permute(1, 0, 2).unsqueeze(1)
        places = Places(starts, counts, starts)
        attend_compiled(kernel, query, key, value, out, places, scaling=None)
        return out[:, 0]

    together, expected = attended(joined, lengths), []
    split = torch.split(joined, lengths), torch.split(together, lengths)
    for rows, found in zip(*split, strict=True):
        if not torch.equal(attended(rows, [len(rows)]), found):
            return "a text's bits depend on the others"
        query, key, value = rows.float().unbind(1)
        expected.append(scaled_dot_product_attention(query, key, value))
    distance = float((together.float() - torch.cat(expected)).norm() / torch.cat(expected).norm())
    return None if distance <= MOST_DISTANCE else f"it is off by {distance:.2g}"


def _with_threads(entry: int) -> Kernel:
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)
    # Several threads run one function: what a compiler makes of `#pragma omp parallel`, in
    # libgomp's ABI. Their number is the team's, which a smaller one would end threads of.
    parallel = getattr(openmp_library(), "GOMP_parallel", None)

    def run(address: int, threads: int) -> None:
        if threads == 1 or parallel is None:
            function(address)
        else:
            parallel(function, ctypes.c_void_p(address), ctypes.c_uint(threads), ctypes.c_uint(0))

    return run
