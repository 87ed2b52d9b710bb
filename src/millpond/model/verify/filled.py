"""Queries that are filled up with tokens which no other attends to: verified at load, too.

A text runs packed with hidden tokens, and through the model's stock attention with a mask. Where
the hidden states do not agree, the model runs padded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...attention.filled import FilledSequences
from ...errors import summary
from ..transformer import Transformer
from .execution import ExecutionMode, disagreement, last_layer, run_row

__all__ = ["verify_filled"]

logger = logging.getLogger("millpond")

LENGTH, ATTENDED = 12, 5


@torch.inference_mode()
def verify_filled(
    transformer: Transformer, execution: ExecutionMode, *, token_ids: Sequence[int]
) -> ExecutionMode:
    """How the model runs if some tokens are attended to by none.

    The transformer is left with the attention that the result needs.
    """
    if execution.kind != "packed":
        return execution
    random = np.random.default_rng(22)
    text = random.choice(token_ids, LENGTH).tolist()
    ids = torch.tensor(text, device=transformer.device)
    hidden = np.arange(LENGTH) >= ATTENDED
    mask = torch.from_numpy(~hidden).to(ids).unsqueeze(0)
    transformer.use_stock_attention()
    expected = last_layer(transformer.padded(ids.unsqueeze(0), mask))
    transformer.use_packed_attention()
    sequences = FilledSequences(np.array([LENGTH]), hidden, alone=True)
    try:
        found = run_row(transformer, [text], sequences)
        reason = disagreement(found, [expected], quantisation_error=transformer.quantisation_error)
    except Exception as error:  # whatever a model's code objects with
        reason = summary(error)
    if reason is None:
        return execution
    logger.info("with tokens that are not attended to it runs padded: %s", reason)
    transformer.use_stock_attention()
    transformer.fused = None
    return replace(execution, kind="padded", reason=f"not packed with hidden tokens: {reason}")
