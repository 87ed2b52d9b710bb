"""The kernels of a packed forward pass, as far as this machine has them: `packed_kernels`."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu

from ....errors import summary
from ..float8 import Float8Product, Float8Rows, quantise_rows

__all__ = ["LayerNorm", "PackedKernels", "packed_kernels"]

logger = logging.getLogger("millpond")

TENSOR_MAPS = (9, 0)
WIDTH = 32  # of the rows that every kernel is tried with


class LayerNorm(NamedTuple):
    """What a layer norm has beside its rows."""

    weight: Tensor
    bias: Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class PackedKernels:
    """What stands between the products of a layer; each is described where Triton's is."""

    add_layer_norm: Callable[..., tuple[Tensor, Float8Rows | None]]
    embedding_norm: Callable[..., tuple[Tensor, Float8Rows | None]]
    add_rms_norm: Callable[..., Tensor | Float8Rows]
    norm_and_rotate: Callable[..., None]
    silu_times_joined: Callable[[Tensor], Tensor]
    silu_times_joined_float8: Callable[[Tensor], Float8Rows]
    gelu_float8: Callable[[Tensor], Float8Rows]
    gelu_of_product: Callable[..., Tensor] | None
    """None where the device has no tensor maps, or nothing is in float8."""


@cache
def packed_kernels(device: torch.device, *, float8: bool = False) -> PackedKernels | None:
    """Those of Triton, if it is there and makes them for this device; with the product in `float8`
    only where it is asked for."""
    if device.type != "cuda":
        return None
    try:
        norms: Any = importlib.import_module(".norms", __package__)
        joined: Any = importlib.import_module(".joined", __package__)
        found = PackedKernels(
            add_layer_norm=norms.add_layer_norm,
            embedding_norm=norms.embedding_norm,
            add_rms_norm=norms.add_rms_norm,
            norm_and_rotate=joined.norm_and_rotate,
            silu_times_joined=joined.silu_times_joined,
            silu_times_joined_float8=joined.silu_times_joined_float8,
            gelu_float8=joined.gelu_float8,
            gelu_of_product=_gelu_of_product(device) if float8 else None,
        )
        _try(found, device)
    except Exception as error:  # no Triton, no C compiler, a device it does not know
        logger.info("no kernels of Triton's for packed rows: %s", summary(error))
        return None
    return found


def _gelu_of_product(device: torch.device) -> Callable[..., Tensor] | None:
    if torch.cuda.get_device_capability(device) < TENSOR_MAPS:
        return None
    try:
        kernels: Any = importlib.import_module(".float8", __package__)
        weight = torch.eye(WIDTH, device=device, dtype=torch.bfloat16)
        product = Float8Product(weight, weight[0] * 0)
        found = kernels.gelu_of_product(quantise_rows(weight), product, 1.0).float()
        agrees = torch.allclose(found, gelu(weight.float()), rtol=0.1, atol=0.01)
    except Exception as error:  # a Triton without tensor maps
        logger.info("a product in float8 and its GELU are two kernels: %s", summary(error))
        return None
    return kernels.gelu_of_product if agrees else None


def _try(kernels: PackedKernels, device: torch.device) -> None:
    rows = torch.ones(2, WIDTH, device=device, dtype=torch.float16)
    kernels.add_layer_norm(rows, rows, LayerNorm(rows[0], rows[0], 1e-6))
    kernels.add_rms_norm(None, rows, rows[0], 1e-6)
    kernels.silu_times_joined(rows)
    angles = torch.ones(2, WIDTH // 2, device=device, dtype=torch.float16)
    kernels.norm_and_rotate(rows.clone(), angles, angles, heads=(1, 1), norms=None)
    torch.cuda.synchronize(device)
