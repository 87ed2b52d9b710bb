"""Attention of whole sequences on a CPU: by torch, and where it is quicker by a kernel of ours.

A sequence's kernel depends on its own length alone, so its bits do not depend on the others of a
pass.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ...attention.packed import PackedSequences
from ...cpu import scripted
from ...cpu.openmp import openmp_library
from ...cpu.preemption import yield_to_queries
from ...errors import first_line
from ...locks import fork_safe
from ..replace import probe_rows
from . import encoder_functions
from .compiled import kernels

__all__ = [
    "Attend",
    "CompiledAttention",
    "attend_firsts",
    "attend_in_groups",
    "compiled_attention",
    "load_kernel",
    "uses_compiled_attention",
    "without_loading_kernels",
]

logger = logging.getLogger("millpond")

Attend = Callable[[Tensor, PackedSequences, int, float], Tensor]
"""Of query, key and value `[n, 3 × heads × size]`, the sequences, the size and the scaling, to
`[n, heads × size]`: zeros for rows that belong to no sequence."""

HEAD_STEP = 32  # elements of a head that the kernel takes at once
LEAST_OPERATIONS = 1e7  # that are worth a second thread: some 70 µs on a Zen 4
PROBE_LENGTHS = (1, 31, 64, 150)
MOST_DISTANCE = 5e-3  # from float32, relative to it; torch's kernel is 2e-3 off, this one as well

Kernel = Callable[[int, int], None]
"""Takes the address of `kernels.AttentionArguments`, and the number of threads."""


def attend_in_groups(
    joined: Tensor, sequences: PackedSequences, size: int, scaling: float
) -> Tensor:
    """Attention within each sequence, those of one length at a time, by torch."""
    groups, masks = _groups(joined, sequences)
    attended: Tensor = scripted.run(
        encoder_functions.attend_in_groups, joined, groups, masks, size, scaling, 0
    )
    return attended


def attend_firsts(
    attend: Attend,
    joined: Tensor,
    sequences: PackedSequences,
    size: int,
    scaling: float,
    places: Tensor,
) -> Tensor:
    """What `attend` gives at these places, int64: the first rows of all sequences and then any,
    for which any numbers come."""
    if isinstance(attend, CompiledAttention):
        return attend.firsts(joined, sequences, size, scaling, len(places))
    if attend is attend_in_groups:
        return _firsts_in_groups(joined, sequences, size, scaling, len(places))
    return attend(joined, sequences, size, scaling).index_select(0, places)


def compiled_attention(
    dtype: torch.dtype, size: int, least_length: int
) -> CompiledAttention | None:
    """For heads of this size, where the processor has what the kernel takes; Numba is not imported
    before a text is that long.

    With matrix units torch's kernel makes use of those.
    """
    has_pairs = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    if dtype != torch.bfloat16 or size % HEAD_STEP or not has_pairs() or has_tiles():
        return None
    return None if find_spec("numba") is None else CompiledAttention(least_length)


def uses_compiled_attention(model: nn.Module) -> bool:
    """Whether any of its layers does, for texts that are long enough."""
    fused = (getattr(vars(layer).get("forward"), "fused", None) for layer in model.modules())
    return any(isinstance(getattr(each, "attend", None), CompiledAttention) for each in fused)


@dataclass(frozen=True)
class CompiledAttention:
    """Sequences of `least_length` and more attend by `kernels.attend_by_dot_products`, shorter ones
    by torch; and so do all where the kernel cannot be had after all."""

    least_length: int

    def kernel_for(self, sequences: PackedSequences) -> Kernel | None:
        """The kernel, if any of them attends by it."""
        return load_kernel() if sequences.longest >= self.least_length else None

    def __call__(
        self, joined: Tensor, sequences: PackedSequences, size: int, scaling: float
    ) -> Tensor:
        kernel = self.kernel_for(sequences)
        if kernel is None:
            return attend_in_groups(joined, sequences, size, scaling)
        yield_to_queries()
        short, starts, lengths, _ = _divided(sequences, self.least_length)
        out = joined.new_empty(len(joined), joined.shape[1] // 3)
        out[sequences.total :] = 0
        if short is not None:
            found = attend_in_groups(joined[: short.total], short, size, scaling)
            first = 0
            for start, count, length in short.groups:
                rows = count * length
                out[start : start + rows] = found[first : first + rows]
                first += rows
        places = _Places(starts, lengths, starts)
        _attend(kernel, joined, out, places, size, scaling, sequences.longest)
        return out

    def firsts(
        self, joined: Tensor, sequences: PackedSequences, size: int, scaling: float, rows: int
    ) -> Tensor:
        """Of the first token of each sequence, and zeros after them: `[rows, heads × size]`."""
        kernel = self.kernel_for(sequences)
        if kernel is None:
            return _firsts_in_groups(joined, sequences, size, scaling, rows)
        short, starts, lengths, numbers = _divided(sequences, self.least_length)
        out = joined.new_zeros(rows, joined.shape[1] // 3)
        if short is not None:
            others = np.setdiff1d(np.arange(len(sequences.places[1])), numbers)
            found = _firsts_in_groups(joined[: short.total], short, size, scaling, len(others))
            out[torch.from_numpy(others)] = found
        _attend(kernel, joined, out, _Places(starts, lengths, numbers), size, scaling, 1)
        return out


class _Places(NamedTuple):
    """Of each sequence its first row, its length, and the first row of what comes of it; int64."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    out: npt.NDArray[np.int64]


def _attend(
    kernel: Kernel,
    joined: Tensor,
    out: Tensor,
    places: _Places,
    size: int,
    scaling: float,
    queries: int,
) -> None:
    """Put into `out` what the first `queries` tokens of each sequence attend to."""
    compiled, joined = kernels(), joined.contiguous()
    width, longest = out.shape[1], int(places.lengths.max())
    tokens = np.minimum(places.lengths, queries)
    operations = 4 * width * int(np.dot(tokens, places.lengths))
    threads = torch.get_num_threads() if operations >= LEAST_OPERATIONS else 1
    room_bytes = compiled.room_bytes(longest, size)
    room = torch.empty(threads * room_bytes, dtype=torch.uint8)
    starts, lengths, rows = map(np.ascontiguousarray, places)
    arguments = compiled.AttentionArguments(
        joined_at=joined.data_ptr(),
        rows=len(joined),
        heads=width // size,
        size=size,
        scaling=int(np.float64(scaling).view(np.int64)),
        starts_at=starts.ctypes.data,
        lengths_at=lengths.ctypes.data,
        places_at=rows.ctypes.data,
        sequences=len(starts),
        longest=longest,
        queries=queries,
        out_at=out.data_ptr(),
        room_at=room.data_ptr(),
        room_bytes=room_bytes,
    )
    numbers = np.array(arguments, np.int64)
    kernel(numbers.ctypes.data, threads)


class _Divided(NamedTuple):
    """Sequences that are shorter than some length, and of the others where they are."""

    short: PackedSequences | None
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    """Which of all sequences they are."""


def _divided(sequences: PackedSequences, length: int) -> _Divided:
    """Made once a batch."""
    if length not in sequences.divided:
        starts, lengths = sequences.places
        numbers = np.flatnonzero(lengths >= length)
        groups = [group for group in sequences.groups if group[2] < length]
        short = sequences.among(groups) if groups else None
        sequences.divided[length] = _Divided(short, starts[numbers], lengths[numbers], numbers)
    found: _Divided = sequences.divided[length]
    return found


def _firsts_in_groups(
    joined: Tensor, sequences: PackedSequences, size: int, scaling: float, rows: int
) -> Tensor:
    """Of the first token of each sequence: `[rows, heads × size]`, zeros after them."""
    groups, masks = _groups(joined, sequences)
    attended: Tensor = scripted.run(
        encoder_functions.attend_firsts, joined, groups, masks, size, scaling, rows
    )
    return attended


def _groups(
    joined: Tensor, sequences: PackedSequences
) -> tuple[list[tuple[int, int, int]], list[Tensor]]:
    """Groups of sequences, and what hides the keys beyond the length of each."""
    groups, keys = list(sequences.groups), sequences.key_lengths(joined)
    return groups, scripted.run(encoder_functions.masks_of_groups, joined, groups, keys)


_loading = fork_safe(threading.Lock())
_found: list[Kernel | None] = []  # once it was looked for


class _ThisThread(threading.local):
    waits_for_texts = False


_this_thread = _ThisThread()


@contextmanager
def without_loading_kernels() -> Iterator[None]:
    """For checks at load: texts attend by torch here, unless the kernel was read before.

    It takes half a second to import Numba, which a short text has no use for. The kernel is checked
    when it is read, by itself.
    """
    before, _this_thread.waits_for_texts = _this_thread.waits_for_texts, True
    try:
        yield
    finally:
        _this_thread.waits_for_texts = before


def load_kernel() -> Kernel | None:
    """The kernel, compiled or read from disk at the first call, which takes a while."""
    if not _found and not _this_thread.waits_for_texts:
        with _loading:
            if not _found:
                _found.append(_read())
    return _found[0] if _found else None


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
    scaling, lengths = HEAD_STEP**-0.5, np.array(PROBE_LENGTHS, np.int64)
    joined = torch.cat([probe_rows(n, 3 * HEAD_STEP, dtype=torch.bfloat16) for n in PROBE_LENGTHS])

    def attended(rows: Tensor, lengths: npt.NDArray[np.int64]) -> Tensor:
        starts, out = np.cumsum(lengths) - lengths, rows.new_empty(len(rows), HEAD_STEP)
        places = _Places(starts, lengths, starts)
        _attend(kernel, rows, out, places, HEAD_STEP, scaling, int(lengths.max()))
        return out

    together, expected = attended(joined, lengths), []
    for rows, found in zip(
        *(torch.split(each, list(PROBE_LENGTHS)) for each in (joined, together)), strict=True
    ):
        if not torch.equal(attended(rows, np.array([len(rows)])), found):
            return "a text's bits depend on the others"
        query, key, value = rows.float().view(-1, 3, HEAD_STEP).unbind(1)
        expected.append(scaled_dot_product_attention(query, key, value, scale=scaling))
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
