"""Whether a model on a GPU runs without its own forward: verified at load, as packed runs are."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from functools import partial

import torch
from torch import nn

from ...attention.packed import AttentionOptions
from ...errors import first_line
from ...layers.cuda.kernels.packed import packed_kernels
from ...layers.cuda.packed.model import packed_forward
from ..transformer import Transformer
from .execution import ExecutionMode, WatchedSequences, check_texts, disagreement, run_packed

__all__ = ["verify_packed_forward"]

logger = logging.getLogger("millpond")

HALF = (torch.float16, torch.bfloat16)


@torch.inference_mode()
def verify_packed_forward(
    transformer: Transformer,
    execution: ExecutionMode,
    *,
    token_ids: Sequence[int],
    keep: Container[nn.Module] = (),
    float8: bool = False,
) -> None:
    """Leave out the model's own forward on a GPU where fused layers give the same.

    Layers with a module to `keep` run as they are. With `float8` they may come to run in it.
    """
    kernels = packed_kernels(transformer.device, float8=float8)
    if execution.kind != "packed" or kernels is None or transformer.dtype not in HALF:
        return
    texts = check_texts(transformer, token_ids)
    asked: list[AttentionOptions] = []
    expected = run_packed(transformer, texts, partial(WatchedSequences, asked=asked))
    try:
        transformer.fused = packed_forward(
            transformer.model,
            kernels,
            asked,
            needs_token_type_ids=transformer.needs_token_type_ids,
            keep=keep,
        )
        reason = disagreement(run_packed(transformer, texts), expected)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # other layers, or embeddings that are called otherwise
        reason = first_line(error)
    if reason is not None:
        logger.debug("the model's own forward stays: %s", reason)
        transformer.fused = None
