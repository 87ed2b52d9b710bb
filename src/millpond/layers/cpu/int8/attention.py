"""Attention of whole sequences in bfloat16, by the processor's matrix units."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....attention.packed import PackedSequences
from ....cpu.compiled import as_array, kernels
from ....cpu.preemption import yield_to_queries

__all__ = ["has_tile_attention", "tile_attention"]

HEAD_STEP = 32  # elements of a head that a matrix unit takes at once


def has_tile_attention(dtype: torch.dtype, size: int) -> bool:
    """Whether `tile_attention` can be had for heads of this size."""
    return dtype == torch.bfloat16 and size % HEAD_STEP == 0 and bool(kernels().has_tiles())


def tile_attention(joined: Tensor, sequences: PackedSequences, size: int, scaling: float) -> Tensor:
    """Attention within each sequence, of query, key and value `[n, 3 × heads × size]` in bfloat16.

    All sequences are one call, whatever their lengths. Rows that belong to none are zeros.
    """
    yield_to_queries()
    compiled, (starts, lengths) = kernels(), sequences.places
    count = compiled.ROWS_AT_ONCE
    longest = -(-sequences.longest // count) * count

    def buffer(*shape: int, dtype: torch.dtype) -> npt.NDArray[Any]:
        return torch.empty(shape, dtype=dtype).numpy()

    joined = joined.contiguous()
    out = joined.new_empty(len(joined), joined.shape[1] // 3)
    out[sequences.total :] = 0
    compiled.attend(
        as_array(joined),
        joined.view(torch.uint32).numpy(),
        *(starts, lengths, size, np.float32(scaling)),
        # Rows that are a power of two apart would share few lines of the cache.
        buffer(count, longest + 16, dtype=torch.float32),
        buffer(count, longest + 32, dtype=torch.uint16),
        buffer(longest // 16, size // 32, 256, dtype=torch.uint32),
        buffer(longest // 32, size // 16, 256, dtype=torch.uint32),
        buffer(count, size, dtype=torch.uint16),
        *(compiled.PALETTE, as_array(out)),
    )
    return out
