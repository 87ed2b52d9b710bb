"""`KVCacheConfig`: how large a prefix cache a loaded model gets, and its tensors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..attention.kv_cache import KVCache
from ..model.pooling_model import PoolingModel
from ..model.transformer import Transformer
from ..scheduler.batch_builder import most_keys
from ..scheduler.prefix_cache import PrefixCacheConfig
from .memory import MemoryBudget

__all__ = ["KVCacheConfig"]

logger = logging.getLogger("millpond")


BLOCK_TOKENS = 16


COPIES = 2  # of the keys and values that a layer reads: as they are kept, and in a row


FEWEST_BLOCKS = 64


MOST_BLOCKS = 1 << 17  # two million tokens; the books of more take memory of their own


# What it costs to look texts up and to put their keys in order grows with the layers, and what a
# token costs with their weights. So with layers larger than these fewer tokens are worth it.
LAYER_WEIGHTS = 16_000_000


FEWEST_SAVED_TOKENS = 256


@dataclass(frozen=True)
class KVCacheConfig:
    """A model whose prefixes can be cached, and the room for them."""

    like: KVCache
    """A small cache with the model's layers."""
    budget: PrefixCacheConfig

    @classmethod
    def of(
        cls,
        models: Sequence[PoolingModel],
        memory: MemoryBudget,
        *,
        saved_tokens: int = 0,
        max_batch_tokens: int | None = None,
    ) -> KVCacheConfig | None:
        """The room for a model's prefixes; None where they cannot be cached.

        Texts are looked up where `saved_tokens` or more could be saved, if the layers have
        `LAYER_WEIGHTS`; batches with prefixes have `max_batch_tokens` at most. Memory of a host is
        taken as it is first written to, that of a GPU at once.
        """
        if len(models) != 1 or models[0].prefixes.cache is None:
            return None
        like = models[0].prefixes.cache
        room = memory.room_for_prefixes()
        blocks = min(MOST_BLOCKS, room // (like.bytes_per_slot * BLOCK_TOKENS))
        if blocks < FEWEST_BLOCKS:
            logger.info("no prefix cache: there is too little memory for one")
            return None
        budget = PrefixCacheConfig(
            blocks=blocks,
            block_tokens=BLOCK_TOKENS,
            bytes_per_token=like.bytes_per_slot,
            min_saved_tokens=_min_saved_tokens(models[0], saved_tokens, len(like.shapes)),
            max_batch_tokens=max_batch_tokens,
        )
        return cls(like, budget)

    def reserved(self, max_batch_tokens: int) -> int:
        """Bytes for the cache, and for what a batch of that many tokens reads of it in a layer."""
        layer = max(shape.elements for shape in self.like.shapes.values())
        keys = most_keys(max_batch_tokens) * layer * self.like.dtype.itemsize
        return self.budget.bytes + COPIES * keys

    def allocate(self) -> KVCache:
        """The cache, empty."""
        return self.like.like(self.budget.blocks * self.budget.block_tokens)


def _min_saved_tokens(pipeline: PoolingModel, tokens: int, layers: int) -> int:
    if not tokens or not isinstance(pipeline.encoder, Transformer):
        return tokens
    model = pipeline.encoder.model
    table: Any = model.get_input_embeddings().weight
    weights = sum(int(p.numel()) for p in model.parameters()) - int(table.numel())
    return min(tokens, max(FEWEST_SAVED_TOKENS, tokens * LAYER_WEIGHTS * layers // weights))
