"""A BERT-style encoder on a CPU, from ids to the last layer, without the model's own forward.

Its layers are fused ones (`encoder_layer`), and its embeddings too where they are BERT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...attention.packed import PackedSequences
from ...cpu import scripted
from ...cpu.preemption import may_yield
from ...cpu.row_buckets import whole_rows
from ..parts import leaves
from . import encoder_functions
from .attention import CompiledAttention, attend_in_groups
from .encoder_layer import FusedForward, FusedLayer
from .linear import Product, norm_options

__all__ = ["FusedEncoder"]

# In the order they are added up. Without types, all tokens are of the first one.
TABLES = ("word_embeddings", "token_type_embeddings", "position_embeddings")

SHORT_ROWS = 64  # a pass of so few is over as soon as a query is: it yields to none
ROWS_A_FIRST = 4  # with fewer rows in all, those of first tokens alone are hardly less work


class FusedEncoder:
    """A model whose layers are all fused, from ids to the last layer without its own forward."""

    def __init__(self, model: nn.Module, *, needs_token_type_ids: bool) -> None:
        """Raises `ValueError` for a model that is not embeddings and fused layers alone."""
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        embeddings = getattr(model, "embeddings", None)
        if len(lists) != 1 or embeddings is None:
            raise ValueError("not embeddings and layers alone")
        forwards = [vars(layer).get("forward") for layer in lists[0]]
        if not forwards:
            raise ValueError("no layers")
        self.layers = [each.fused for each in forwards if isinstance(each, FusedForward)]
        if len(self.layers) < len(forwards):
            raise ValueError("a layer that is not fused")
        self._stack = _stacked(self.layers)
        self._embeddings = embeddings
        self._needs_token_type_ids = needs_token_type_ids
        self._tables = _tables(embeddings)

    def _embed(self, ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        if self._tables is None:
            return self._embed_by_module(ids, positions, types)
        taken = ids, positions, types, *self._tables
        rows: Tensor = scripted.run(encoder_functions.embed_tokens, *taken)
        return rows

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
        if self._is_one_call(sequences) and (len(ids) <= SHORT_ROWS or not may_yield()):
            return self._in_one_call(ids, positions, types, sequences, None)
        rows = self._embed(ids, positions, types)
        for layer in self.layers:
            rows = layer.packed(rows, sequences)
        return rows

    def _is_one_call(self, sequences: PackedSequences) -> bool:
        """Whether all layers may be: TorchScript calls no kernel of ours."""
        attend = self.layers[0].attend
        if isinstance(attend, CompiledAttention) and attend.kernel_for(sequences) is not None:
            return False
        return self._stack is not None

    def _in_one_call(
        self,
        ids: Tensor,
        positions: Tensor,
        types: Tensor | None,
        sequences: PackedSequences,
        places: Tensor | None,
    ) -> Tensor:
        """All layers, which yield to nothing; with places, the last as `firsts` has it."""
        assert self._stack is not None
        groups, keys = list(sequences.groups), sequences.key_lengths(self._stack.like)
        of_layers = *self._stack.of_layers, groups, keys, *self._stack.of_heads, places
        rows: Tensor
        if self._tables is None:
            rows = self._embed_by_module(ids, positions, types)
            rows = scripted.run(encoder_functions.run_layers, rows, *of_layers)
        else:
            embedded = ids, positions, types, *self._tables
            rows = scripted.run(encoder_functions.run_encoder, *embedded, *of_layers)
        return rows

    def firsts(
        self,
        ids: Tensor,
        positions: Tensor,
        sequences: PackedSequences,
        starts: Tensor,
        types: Tensor | None = None,
    ) -> Tensor | None:
        """Of the hidden states those of the first token of each text, `[n, width]`.

        `starts`, int64 `[n]`, says where texts begin. None where that is hardly less work than all.
        """
        texts = len(starts)
        wanted = whole_rows(texts)
        if len(ids) < ROWS_A_FIRST * wanted:
            return None
        places = pad(starts, (0, wanted - texts))
        if self._is_one_call(sequences) and not may_yield():
            return self._in_one_call(ids, positions, types, sequences, places)[:texts]
        rows = self._embed(ids, positions, types)
        for layer in self.layers[:-1]:
            rows = layer.packed(rows, sequences)
        return self.layers[-1].firsts(rows, sequences, places)[:texts]


@dataclass(frozen=True, slots=True)
class _Stack:
    """What `encoder_functions.run_layers` takes of the layers, whatever the batch."""

    of_layers: tuple[list[Tensor], list[Tensor | None], list[Tensor | None], list[float]]
    of_heads: tuple[int, float]
    like: Tensor
    """Of the dtype of the rows."""


def _stacked(layers: Sequence[FusedLayer]) -> _Stack | None:
    """None where a layer has other products or another attention, or its own sizes."""
    products = [each for one in layers for each in (one.joined, one.out, one.up, one.down)]
    whole = [each for each in products if isinstance(each, Product) and each.is_whole]
    kinds = {(layer.attend, layer.head_size, layer.scaling) for layer in layers}
    if len(whole) < len(products) or len(kinds) != 1:
        return None
    ((attend, head_size, scaling),) = kinds
    if attend is not attend_in_groups and not isinstance(attend, CompiledAttention):
        return None
    norms: list[Any] = [each for one in layers for each in (one.norm, one.last_norm)]
    weights = [product.packed[0] for product in whole]
    biases = [product.bias for product in whole]
    scales = [each for _, weight, bias, _ in norms for each in (weight, bias)]
    epsilons = [epsilon for *_, epsilon in norms]
    return _Stack((weights, biases, scales, epsilons), (head_size, scaling), weights[0])


def _tables(embeddings: nn.Module) -> tuple[list[Tensor], list[Tensor | None], float] | None:
    """What `encoder_functions.embed_tokens` takes of BERT-style embeddings; None for others.

    Whether they are called in this order, the encoder's comparison with the model shows.
    """
    parts: dict[str, Any] = leaves(embeddings)
    if parts.keys() != {*TABLES, "LayerNorm"} or type(parts["LayerNorm"]) is not nn.LayerNorm:
        return None
    tables = [parts[name] for name in TABLES]
    if not all(type(table) is nn.Embedding and table.max_norm is None for table in tables):
        return None
    _, weight, bias, epsilon = norm_options(parts["LayerNorm"])
    return [table.weight for table in tables], [weight, bias], epsilon
