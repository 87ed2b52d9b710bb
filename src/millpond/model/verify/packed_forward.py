"""Whether a model on a GPU runs without its own forward: verified at load, as packed runs are."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.packed import PackedSequences
from ...errors import first_line
from ...layers.cuda.kernels.packed import packed_kernels
from ...layers.cuda.packed.model import packed_forward
from ...layers.cuda.packed.parts import AttentionOptions
from ..transformer import Transformer
from .execution import ExecutionMode, check_texts, disagreement, run_packed

__all__ = ["verify_packed_forward"]

logger = logging.getLogger("millpond")

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _RecordedSequences(PackedSequences):
    """Sequences that keep what each layer asks its attention for."""

    asked: list[AttentionOptions] = field(default_factory=list)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        self.asked.append(AttentionOptions(**options))
        return super().attend(query, key, value, **options)


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
    expected = run_packed(transformer, texts, partial(_RecordedSequences, asked=asked))
    try:
        forward = packed_forward(
            transformer.model,
            kernels,
            asked,
            needs_token_type_ids=transformer.needs_token_type_ids,
            keep=keep,
        )
        transformer.use_packed_forward(forward)
        reason = disagreement(run_packed(transformer, texts), expected)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # other layers, or embeddings that are called otherwise
        reason = first_line(error)
    if reason is not None:
        logger.debug("the model's own forward stays: %s", reason)
        transformer.use_reference_forward()
