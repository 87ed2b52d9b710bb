"""Gated layers for a GPU: `silu(gate) * up` in one kernel in place of two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..replace import PROBE_ROWS, TOLERANCE, first_equal, probe_rows
from ..split import RowSplitLinear

__all__ = ["fuse_gates"]

SiluTimes = Callable[[Tensor, Tensor], Tensor]

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
LINEARS = (nn.Linear, RowSplitLinear)
ROUNDINGS = 3  # one product follows another, with a gate between them


@torch.no_grad()
def fuse_gates(model: nn.Module, silu_times: SiluTimes) -> int:
    """Let the gated layers of a model use `silu_times(gate, up)`; how many is returned.

    They are known by the names of their parts, and have to give what they gave before.
    """
    layers = [layer for layer in model.modules() if _is_gated(layer)]
    return sum(_fuse(layer, silu_times) for layer in layers)


def _is_gated(layer: nn.Module) -> bool:
    children = dict(layer.named_children())
    linears = [type(children.pop(name, None)) in LINEARS for name in PROJECTIONS]
    # What is left is the activation, which is a function in some versions.
    return all(linears) and len(children) <= 1 and "forward" not in vars(layer)


def _fuse(layer: nn.Module, silu_times: SiluTimes) -> bool:
    gate, up, down = (layer.get_submodule(name) for name in PROJECTIONS)
    weight = gate.weight
    assert isinstance(weight, Tensor)
    if weight.dtype not in TOLERANCE:
        return False
    rows = probe_rows(1, PROBE_ROWS, weight.shape[1], dtype=weight.dtype, device=weight.device)
    forward = partial(_forward, gate, up, down, silu_times)
    tolerance = ROUNDINGS * TOLERANCE[weight.dtype]
    if first_equal(layer, [forward], rows, tolerance=tolerance) is None:
        return False
    layer.forward = forward
    return True


def _forward(
    gate: nn.Module, up: nn.Module, down: nn.Module, silu_times: SiluTimes, rows: Tensor
) -> Tensor:
    out: Tensor = down(silu_times(gate(rows), up(rows)))
    return out
