"""Rotary embeddings for a GPU: one kernel in place of five, or three where there is no Triton.

transformers writes the rotation out with tensors for the turned halves and for both products, and
each is a trip through the device's memory. Attention layers call it by a name of their module, so
a layer gets a forward of the same code that finds another function under that name; the module and
the class stay as they are. It is done only where both functions give the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..replace import PROBE_ROWS, first_equal, probe_rows

__all__ = ["fuse_rotary", "rotate"]

Rotation = Callable[..., tuple[Tensor, Tensor]]
Turn = Callable[[Tensor, Tensor, Tensor], Tensor]

NAME = "apply_rotary_pos_emb"
PROBE_HEADS, PROBE_SIZE = (4, 2), 16


@torch.no_grad()
def fuse_rotary(model: nn.Module, turn: Turn | None = None) -> int:
    """Replace the rotation in the attention layers of a model; in how many is returned.

    `turn` is `rotate` unless there is something better: it takes `[1, heads, tokens, size]` rows
    on the model's device and the cosines and sines of angles `[1, tokens, size]`.
    """
    device = next(model.parameters()).device
    fused: dict[Rotation, Rotation | None] = {}
    replaced = 0
    for layer in model.modules():
        forward = type(layer).forward
        if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names:
            continue
        written_out = forward.__globals__.get(NAME)
        if written_out is None or "forward" in vars(layer):
            continue
        if written_out not in fused:
            fused[written_out] = _fused(written_out, turn or rotate, device)
        rotation = fused[written_out]
        if rotation is not None:
            layer.forward = MethodType(_with(forward, rotation), layer)
            replaced += 1
    return replaced


def _with(forward: FunctionType, rotation: Rotation) -> FunctionType:
    """The same code, for which the name means this function."""
    names = {**forward.__globals__, NAME: rotation}
    made = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def _fused(written_out: Rotation, turn: Turn, device: torch.device) -> Rotation | None:
    """What takes the function's place, or None where it does something else."""
    query, key = (
        probe_rows(1, heads, PROBE_ROWS, PROBE_SIZE, dtype=torch.float32, device=device)
        for heads in PROBE_HEADS
    )
    angles = probe_rows(1, PROBE_ROWS, PROBE_SIZE // 2, dtype=torch.float32, device=device)
    angles = angles.repeat(1, 1, 2)
    made = partial(_rotate_both, written_out, turn)
    return first_equal(written_out, [made], query, key, angles.cos(), angles.sin())


def _rotate_both(
    written_out: Rotation,
    turn: Turn,
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    *args: Any,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Queries and keys `[1, heads, tokens, size]`, turned by angles `[1, tokens, size]`."""
    size = query.shape[-1]
    is_known = cos.shape[-1] == key.shape[-1] == size and cos.dtype == query.dtype
    if args or options or len(query) != 1 or len(cos) != 1 or not is_known:
        return written_out(query, key, cos, sin, *args, **options)
    return turn(query, cos, sin), turn(key, cos, sin)


def rotate(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation in torch's operators: `[1, heads, tokens, size]` by `[1, tokens, size]`."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    half = rows.shape[-1] // 2
    out = rows * cos
    out[..., :half].addcmul_(rows[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(rows[..., :half], sin[..., half:])
    return out
