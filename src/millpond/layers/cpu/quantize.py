"""A whole model in int8: which of its layers, and how far it is from itself afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ...errors import InvalidOption
from .encoder_layer import fuse_layers
from .int8.linear import has_int8_layers
from .int8.product import check_int8
from .int8.smoothquant import quantize_linears, recorded_inputs

__all__ = ["quantize"]

logger = logging.getLogger("millpond")

LEAST_COSINE = 0.99  # to the hidden states in the model's own precision, logged if less
MOST_ERROR = 1.0  # of the length of hidden states: then nothing is left of them


@torch.inference_mode()
def quantize(
    model: nn.Module,
    run: Callable[[list[int]], Tensor],
    texts: Sequence[list[int]],
    *,
    keep: Container[nn.Module] = (),
) -> float:
    """Let the linear layers run in int8 but those to `keep`, and say so where vectors suffer.

    `run` gives the hidden states `[length, width]` of a text's token ids; `texts` are as they
    come. Layers that can be are fused. How far hidden states are off now is returned, as the root
    mean square relative to theirs. Raises `InvalidOption` where the processor cannot do it, or
    the model.
    """
    check_int8()
    with recorded_inputs(model) as inputs:
        own = torch.cat([run(text) for text in texts]).float()
    fuse_layers(model, int8_inputs=inputs, keep=keep)
    quantize_linears(model, inputs, keep=keep)
    if not has_int8_layers(model):
        raise InvalidOption(
            "dtype='int8' is for linear layers, and this model has none that can be replaced; "
            "leave it at 'auto'"
        )
    found = torch.cat([run(text) for text in texts]).float()
    error = float((found - own).norm() / own.norm())
    if not error <= MOST_ERROR:
        raise InvalidOption(
            "dtype='int8': this model does not stand it, its hidden states are off by "
            f"{error:.2g} of their length; leave it at 'auto'"
        )
    cosine = float(cosine_similarity(found, own).mean())
    if cosine < LEAST_COSINE:
        logger.warning(
            "in int8 the hidden states of this model have a cosine of %.3f to its own; "
            "dtype='auto' keeps them",
            cosine,
        )
    return error
