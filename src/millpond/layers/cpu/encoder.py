"""A BERT-style encoder on a CPU, from ids to the last layer, without the model's own forward.

Its layers are fused ones (`encoder_layer`), and its embeddings too where they are BERT's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.packed import PackedSequences
from ..parts import leaves
from .encoder_layer import FusedLayer, norm_options

__all__ = ["FusedEncoder"]

# In the order they are added up. Without types, all tokens are of the first one.
TABLES = ("word_embeddings", "token_type_embeddings", "position_embeddings")


class FusedEncoder:
    """A model whose layers are all fused, from ids to the last layer without its own forward."""

    def __init__(self, model: nn.Module, *, needs_token_type_ids: bool) -> None:
        """Raises `ValueError` for a model that is not embeddings and fused layers alone."""
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        embeddings = getattr(model, "embeddings", None)
        if len(lists) != 1 or embeddings is None:
            raise ValueError("not embeddings and layers alone")
        forwards = [vars(layer).get("forward") for layer in lists[0]]
        self._layers = tuple(_fused_of(forward) for forward in forwards)
        self._embeddings = embeddings
        self._needs_token_type_ids = needs_token_type_ids
        self._embed = _fused_embeddings(embeddings) or self._embed_by_module

    def _embed_by_module(self, ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        ids = ids.unsqueeze(0)
        given = {}
        if types is not None:
            given["token_type_ids"] = types.unsqueeze(0)
        elif self._needs_token_type_ids:
            given["token_type_ids"] = torch.zeros_like(ids)
        rows: Tensor = self._embeddings(
            input_ids=ids, position_ids=positions.unsqueeze(0), **given
        )[0]
        return rows

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        sequences: PackedSequences,
        types: Tensor | None = None,
    ) -> Tensor:
        """Hidden states `[total, width]` of ids and the model's own positions, int64 `[total]`.

        `types` are those of the tokens, the first one for all where they are left out.
        """
        rows = self._embed(ids, positions, types)
        for layer in self._layers:
            rows = layer.packed(rows, sequences)
        return rows


def _fused_embeddings(
    embeddings: nn.Module,
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """BERT-style embeddings without calls of modules; None for others.

    Whether they are called in this order, the encoder's comparison with the model shows.
    """
    parts: dict[str, Any] = leaves(embeddings)
    if parts.keys() != {*TABLES, "LayerNorm"} or type(parts["LayerNorm"]) is not nn.LayerNorm:
        return None
    tables = [parts[name] for name in TABLES]
    if not all(type(table) is nn.Embedding and table.max_norm is None for table in tables):
        return None
    words, kinds, places = (table.weight for table in tables)
    norm = norm_options(parts["LayerNorm"])

    def embed(ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        added = kinds[0] if types is None else torch.embedding(kinds, types)
        rows = torch.embedding(words, ids).add_(added)
        return torch.layer_norm(rows.add_(torch.embedding(places, positions)), *norm)

    return embed


def _fused_of(forward: Any) -> FusedLayer:
    fused = forward.args[0] if isinstance(forward, partial) and forward.args else None
    if isinstance(fused, FusedLayer):
        return fused
    raise ValueError("a layer that is not fused")
