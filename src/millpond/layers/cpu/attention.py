"""Attention of whole sequences in fused layers on a CPU: by torch, and where it is quicker by a
kernel of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...attention.compiled import Kernel, Places, attend_compiled, can_be_compiled, load_kernel
from ...attention.packed import PackedSequences
from ...cpu import scripted
from ...cpu.preemption import yield_to_queries
from . import encoder_functions

__all__ = ["Attend", "CompiledAttention", "attend_firsts", "attend_in_groups", "compiled_attention"]

Attend = Callable[[Tensor, PackedSequences, int, float], Tensor]
"""Of query, key and value `[n, 3 × heads × size]`, the sequences, the size and the scaling, to
`[n, heads × size]`: zeros for rows that belong to no sequence."""


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
    """For heads of this size, where the processor has what the kernel takes."""
    return CompiledAttention(least_length) if can_be_compiled(dtype, size) else None


@dataclass(frozen=True)
class CompiledAttention:
    """Sequences of `least_length` and more attend by the kernel that Numba compiles, others by
    torch; and so do all where the kernel cannot be had after all."""

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
        short, starts, lengths, _ = sequences.divided_at(self.least_length)
        out = joined.new_empty(len(joined), joined.shape[1] // 3)
        out[sequences.total :] = 0
        if short is not None:
            found = attend_in_groups(joined[: short.total], short, size, scaling)
            first = 0
            for start, count, length in short.groups:
                rows = count * length
                out[start : start + rows] = found[first : first + rows]
                first += rows
        places = Places(starts, lengths, starts)
        _attend(kernel, joined, out, places, size, scaling, sequences.longest)
        return out

    def firsts(
        self, joined: Tensor, sequences: PackedSequences, size: int, scaling: float, rows: int
    ) -> Tensor:
        """Of the first token of each sequence, and zeros after them: `[rows, heads × size]`."""
        kernel = self.kernel_for(sequences)
        if kernel is None:
            return _firsts_in_groups(joined, sequences, size, scaling, rows)
        short, starts, lengths, numbers = sequences.divided_at(self.least_length)
        out = joined.new_zeros(rows, joined.shape[1] // 3)
        if short is not None:
            others = np.setdiff1d(np.arange(len(sequences.places[1])), numbers)
            found = _firsts_in_groups(joined[: short.total], short, size, scaling, len(others))
            out[torch.from_numpy(others)] = found
        _attend(kernel, joined, out, Places(starts, lengths, numbers), size, scaling, 1)
        return out


def _attend(
    kernel: Kernel,
    joined: Tensor,
    out: Tensor,
    places: Places,
    size: int,
    scaling: float,
    queries: int,
) -> None:
    query, key, value = joined.view(len(joined), 3, -1, size).permute(1, 2, 0, 3)
    heads = out.view(len(out), -1, size)
    attend_compiled(kernel, query, key, value, heads, places, scaling=scaling, queries=queries)


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
