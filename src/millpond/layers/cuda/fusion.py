"""What a decoder does between its products, in fewer kernels: `fuse_for_cuda`.

Norms, rotations and gates are a third of a decoder's time on a GPU when each step of them is a
kernel of its own. Everything here is compared with what it replaces before it is used.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType

import torch
from torch import nn

from ...errors import summary
from .gated_mlp import fuse_gates
from .rms_norm import fuse_rms_norms
from .rotary import fuse_rotary

__all__ = ["fuse_for_cuda"]

logger = logging.getLogger("millpond")


def fuse_for_cuda(model: nn.Module) -> None:
    """Fuse what can be fused in a model on a GPU."""
    kernels = _kernels(next(model.parameters()).device)
    if kernels is None:
        fuse_rms_norms(model)
        fuse_rotary(model)
        return
    fuse_rms_norms(model, kernels.rms_norm, mixed=True)
    fuse_rms_norms(model)  # those it did not do
    fuse_rotary(model, kernels.rotate)
    fuse_gates(model, kernels.silu_times)


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """The module `kernels.decoder`, if Triton and what it needs are there."""
    if device.type != "cuda":  # where a kernel would read at an address of no meaning
        return None
    try:
        kernels = importlib.import_module(".kernels.decoder", __package__)
        rows = torch.ones(1, 8, device=device)
        kernels.silu_times(rows, rows)
        kernels.rms_norm(rows, rows[0], 1e-6)
        kernels.rotate(rows.view(1, 1, 1, 8), rows.view(1, 1, 8), rows.view(1, 1, 8))
        torch.cuda.synchronize(device)
    except Exception as error:  # no Triton, no C compiler, a device it does not know
        logger.info("no kernels of Triton's: %s", summary(error))
        return None
    return kernels
