"""Whether a model may continue from a cached prefix: verified at load, like packed execution.

A few texts run whole; then their prefixes are kept in a small cache, and what follows runs from
it. If the hidden states agree, prefixes may be cached. That a model is causal is not taken from
any list: one that is not, or whose layers mix tokens in ways of their own, fails here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...attention.kv_cache import KVCache
from ...attention.prefix import PrefixedSequences, PrefixIndex, PrefixSlots
from ...errors import summary
from ..transformer import Transformer
from .execution import check_texts, disagreement, run_packed, run_row

__all__ = ["PrefixSupport", "verify_prefixes"]

logger = logging.getLogger("millpond")

NO_INTEGERS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class PrefixSupport:
    """Whether prefixes may be cached, and why not."""

    reason: str
    cache: KVCache | None = None
    """A small one with the model's layers, which a larger one can be made like; None if not."""


@torch.inference_mode()
def verify_prefixes(transformer: Transformer, *, token_ids: Sequence[int]) -> PrefixSupport:
    """Find out whether a model that runs packed gives the same from a cached prefix."""
    try:
        return _compare(transformer, check_texts(transformer, token_ids))
    except Exception as error:  # whatever a model's code objects with, it runs without
        return PrefixSupport(reason=summary(error))


def _compare(transformer: Transformer, texts: list[list[int]]) -> PrefixSupport:
    lengths = np.array([len(text) for text in texts])
    prefixes = lengths // 2
    slots = np.arange(int(prefixes.sum()))
    cache = KVCache(len(slots), dtype=transformer.dtype, device=transformer.device)
    starts = np.cumsum(lengths) - lengths
    heads = [np.arange(a, a + p) for a, p in zip(starts, prefixes, strict=True)]
    kept = PrefixSlots(np.zeros_like(lengths), NO_INTEGERS, np.concatenate(heads), slots)
    sequences = PrefixedSequences.of(PrefixIndex.of(lengths, kept, cache), cache)
    run_row(transformer, texts, sequences)
    whole = run_packed(transformer, texts)
    ends = [text[prefix:] for text, prefix in zip(texts, prefixes, strict=True)]
    used = PrefixSlots(prefixes, slots, NO_INTEGERS, NO_INTEGERS)
    index = PrefixIndex.of(lengths - prefixes, used, cache)
    found = run_row(transformer, ends, PrefixedSequences.of(index, cache), before=prefixes.tolist())
    expected = [rows[prefix:] for rows, prefix in zip(whole, prefixes, strict=True)]
    reason = disagreement(found, expected, quantisation_error=transformer.quantisation_error)
    if reason is not None:
        return PrefixSupport(reason=f"with a cached prefix {reason}")
    return PrefixSupport(reason="it agrees with the whole run", cache=cache)
