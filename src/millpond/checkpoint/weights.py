"""The weight file of a small module folder. It knows file names, not what the weights mean."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import InvalidCheckpoint
from .files import find_weights, has_file, require_whole
from .finite import refuse_non_finite

__all__ = ["read_weights"]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of `model.safetensors`, or else of `pytorch_model.bin`, on the CPU.

    Raises `InvalidCheckpoint` when there is neither, it cannot be read, or not all of it is
    finite.
    """
    require_whole(find_weights(folder))
    try:
        weights = _read(folder)
    except Exception as error:  # both readers raise their own and plain exceptions
        raise InvalidCheckpoint(f"{folder}: its weights cannot be read: {error}") from error
    if weights is None:
        raise InvalidCheckpoint(
            f"{folder}: there is neither model.safetensors nor pytorch_model.bin; "
            "download the checkpoint again"
        )
    refuse_non_finite(folder, weights.items())
    return weights


def _read(folder: Path) -> dict[str, torch.Tensor] | None:
    safetensors, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if has_file(safetensors):
        return load_file(safetensors)
    if has_file(pickled):
        weights: dict[str, torch.Tensor] = torch.load(
            pickled, map_location="cpu", weights_only=True
        )
        return weights
    return None
