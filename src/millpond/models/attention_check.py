"""Whether attention within a long text has the same bits beside other texts and on other threads.

A model is checked at load with texts that are short, for the sake of time. What its attention does
with long ones depends on few sizes, and is tried by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from .attention import PackedSequences
from .cpu_threads import limited_threads

__all__ = ["attention_is_invariant"]

# torch's kernel takes more queries at a time from 192 and from 768 on, and keys in blocks of 512.
LENGTHS = (200, 800)
TEXTS = 3
MOST_NUMBERS = 2**22  # of queries, so that a check takes milliseconds


def attention_is_invariant(
    model: PreTrainedModel, *, longest: int | None, threads: Sequence[int]
) -> bool:
    """Whether packed attention of a model's sizes is batch-invariant on a CPU, for long texts.

    `longest` is the longest text in tokens. True where the configuration does not name the sizes
    in the usual way.
    """
    config: Any = model.config
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return True
    size = getattr(config, "head_dim", None) or width // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    room = longest or LENGTHS[-1]
    modules = (module for module in model.modules() if hasattr(module, "is_causal"))
    kinds = {bool(module.is_causal) for module in modules}
    return all(
        _is_invariant(heads, key_heads, size, model.dtype, causal, length, tuple(threads))
        for causal in kinds
        for length in LENGTHS
        if length <= room and heads * size * length * TEXTS <= MOST_NUMBERS
    )


@cache  # what is found is the processor's, and the same for every model
@torch.inference_mode()
def _is_invariant(
    heads: int,
    key_heads: int,
    size: int,
    dtype: torch.dtype,
    causal: bool,
    length: int,
    threads: tuple[int, ...],
) -> bool:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(count, TEXTS * length, size, generator=generator).to(dtype)
        for count in (heads, key_heads, key_heads)
    )

    def attended(first: int, texts: int) -> Tensor:
        rows = slice(first * length, (first + texts) * length)
        sequences = PackedSequences.of(np.full(texts, length, dtype=np.int64))
        return sequences.attend(
            query[:, rows], key[:, rows], value[:, rows], scaling=None, window=None, causal=causal
        )

    found = []
    for count in threads:
        with limited_threads(count):
            found.append(attended(0, TEXTS))
            found.append(torch.cat([attended(text, 1) for text in range(TEXTS)]))
    return all(torch.equal(each, found[0]) for each in found)
