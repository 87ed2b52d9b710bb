"""The weight file of a small module folder. It knows file names, not what the weights mean."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import InvalidCheckpoint
from .checkpoint_files import find_weights, require_whole

__all__ = ["read_weights", "require_finite"]


def require_finite(folder: Path, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise `InvalidCheckpoint` for weights with NaN or infinity.

    A vector need not show it: an activation makes a number of infinity, and a kernel of NaN.
    What is infinite in float16 is let pass, since another precision may hold it.
    """
    for name, weight in weights:
        if not weight.numel() or not weight.is_floating_point():
            continue
        bounds = torch.stack(torch.aminmax(weight.detach()))
        overflows = weight.dtype == torch.float16 and not bounds.isnan().any()
        if not bounds.isfinite().all() and not overflows:
            raise InvalidCheckpoint(
                f"{folder}: the weight {name} has numbers that are NaN or infinite; "
                "download the checkpoint again"
            )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of `model.safetensors`, or else of `pytorch_model.bin`, on the CPU.

    Raises `InvalidCheckpoint` when there is neither, or it cannot be read.
    """
    safetensors, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    require_whole(find_weights(folder))
    try:
        if safetensors.is_file():
            return load_file(safetensors)
        if pickled.is_file():
            weights: dict[str, torch.Tensor] = torch.load(
                pickled, map_location="cpu", weights_only=True
            )
            return weights
    except Exception as error:  # both readers raise their own and plain exceptions
        raise InvalidCheckpoint(f"{folder}: its weights cannot be read: {error}") from error
    raise InvalidCheckpoint(
        f"{folder}: there is neither model.safetensors nor pytorch_model.bin; "
        "download the checkpoint again"
    )
