"""A BERT-style encoder on a CPU, from ids to the last layer, without the model's own forward.

Its layers are fused ones (`encoder_layer`), and its embeddings too where they are BERT's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.packed import PackedSequences
from ...cpu import scripted
from ...cpu.preemption import may_yield
from ..parts import leaves
from . import encoder_functions
from .encoder_layer import FusedLayer, PrepackedLayer, attend_in_groups, norm_options

__all__ = ["FusedEncoder"]

# In the order they are added up. Without types, all tokens are of the first one.
TABLES = ("word_embeddings", "token_type_embeddings", "position_embeddings")

SHORT_ROWS = 64  # a pass of so few is over as soon as a query is: it yields to none


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
        self._stack = _Stack.of(self._layers)
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
        if self._stack is not None and (len(rows) <= SHORT_ROWS or not may_yield()):
            return self._stack(rows, sequences)
        for layer in self._layers:
            rows = layer.packed(rows, sequences)
        return rows


@dataclass(frozen=True, slots=True)
class _Stack:
    """All layers in one call, which yields to nothing."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    norms: list[Tensor | None]
    epsilons: list[float]
    head_size: int
    scaling: float

    @classmethod
    def of(cls, layers: Sequence[FusedLayer]) -> _Stack | None:
        """None where a layer has other products or another attention, or its own sizes."""
        if not layers:
            return None
        stack = cls([], [], [], [], layers[0].head_size, layers[0].scaling)
        for layer in layers:
            each = layer.products
            sizes = layer.head_size, layer.scaling
            if not isinstance(each, PrepackedLayer) or layer.attend is not attend_in_groups:
                return None
            products = each.joined, each.out, each.up, each.down
            if not all(product.is_whole for product in products):
                return None
            if sizes != (stack.head_size, stack.scaling):
                return None
            stack.weights.extend(product.packed[0] for product in products)
            stack.biases.extend(product.bias for product in products)
            for _, weight, bias, epsilon in (each.norm, each.last_norm):
                stack.norms.extend((weight, bias))
                stack.epsilons.append(epsilon)
        return stack

    def __call__(self, rows: Tensor, sequences: PackedSequences) -> Tensor:
        out: Tensor = scripted.run(
            encoder_functions.run_layers,
            rows,
            self.weights,
            self.biases,
            self.norms,
            self.epsilons,
            list(sequences.groups),
            sequences.key_lengths(rows),
            self.head_size,
            self.scaling,
        )
        return out


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
    weights = [table.weight for table in tables]
    _, weight, bias, epsilon = norm_options(parts["LayerNorm"])

    def embed(ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        rows: Tensor = scripted.run(
            encoder_functions.embed_tokens, ids, positions, types, weights, [weight, bias], epsilon
        )
        return rows

    return embed


def _fused_of(forward: Any) -> FusedLayer:
    fused = forward.args[0] if isinstance(forward, partial) and forward.args else None
    if isinstance(fused, FusedLayer):
        return fused
    raise ValueError("a layer that is not fused")
