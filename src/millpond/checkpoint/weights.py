"""Weights as numbers: the file of a small module folder, and values that are NaN or infinite.

It knows file names and dtypes, not what the weights mean. That a weight is not finite need not show
in a vector: fused attention on a CPU gives zeros for a token whose scores are NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InvalidCheckpoint
from .files import find_weights, require_whole

__all__ = ["non_finite", "read_linear", "read_weights", "refuse_non_finite"]

# The integers of the same size, and infinity as one of them.
_BITS: Mapping[torch.dtype, tuple[torch.dtype, type[np.unsignedinteger[Any]], int]] = {
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float32: (torch.int32, np.uint32, 0x7F80_0000),
    torch.float64: (torch.int64, np.uint64, 0x7FF0_0000_0000_0000),
}
AT_A_TIME = 2**26  # numbers that are looked at on a GPU, which takes a copy of them


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of `model.safetensors`, or else of `pytorch_model.bin`, on the CPU.

    Raises `InvalidCheckpoint` when there is neither, it cannot be read, or not all of it is
    finite.
    """
    files = find_weights(folder)
    if not files:
        raise InvalidCheckpoint(
            f"{folder}: there is neither model.safetensors nor pytorch_model.bin; "
            "download the checkpoint again"
        )
    require_whole(files)
    weights: dict[str, Tensor] = {}
    try:
        for file in files:
            is_safe = file.suffix == ".safetensors"
            weights |= load_file(file) if is_safe else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # both readers raise their own and plain exceptions
        raise InvalidCheckpoint(f"{folder}: its weights cannot be read: {error}") from error
    refuse_non_finite(folder, weights.items())
    return weights


def read_linear(path: Path) -> tuple[Tensor, Tensor]:
    """The weight and bias of a linear layer that `torch.save` wrote alone, without running code.

    Raises `InvalidCheckpoint`.
    """
    require_whole([path])
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = saved["weight"], saved["bias"]
        fits = weight.ndim == 2 and bias.shape == weight.shape[:1] and len(saved) == 2
    except Exception as error:  # torch's reader raises its own and plain exceptions
        raise InvalidCheckpoint(f"{path}: no linear layer can be read from it: {error}") from error
    if not fits:
        raise InvalidCheckpoint(f"{path}: its weight and bias do not belong to one linear layer")
    refuse_non_finite(path, [("weight", weight), ("bias", bias)])
    return weight, bias


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in tensors if not _is_finite(tensor)), None)


def _is_finite(tensor: Tensor) -> bool:
    """On a CPU by numpy, which reads 5 GB a second on one thread; torch's threads wait there."""
    types = _BITS.get(tensor.dtype)
    if types is None or not tensor.numel():
        return True  # whole numbers, or quantised
    if tensor.device.type != "cpu":
        parts = torch.split(tensor.detach().reshape(-1), AT_A_TIME)
        return all(bool(part.isfinite().all()) for part in parts)
    signed, unsigned, infinity = types
    bits = tensor.detach().contiguous().view(signed).numpy()
    # As whole numbers, NaNs are above infinity, and those with a sign above all others.
    sign = 1 << (8 * tensor.itemsize - 1)
    return bool(bits.max() < infinity and bits.view(unsigned).max() < sign + infinity)


def refuse_non_finite(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `InvalidCheckpoint` where a weight is NaN or infinite."""
    name = non_finite(tensors)
    if name is not None:
        raise InvalidCheckpoint(
            f"{folder}: the weight {name} holds NaN or infinity; the checkpoint is damaged, or was "
            "saved from a training that failed: download it again, or take an earlier one"
        )
