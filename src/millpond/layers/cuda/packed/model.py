"""A whole model on packed rows without its own forward: `PackedEncoder` and `PackedDecoder`.

Between two products stands one kernel, which adds, normalises and, where the next product reads
float8, quantises. Layers that are not of the known kinds run as transformers has them.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....attention.packed import AttentionOptions, Sequences
from ...parts import leaves
from ..float8 import quantise_rows
from ..kernels.packed import LayerNorm, PackedKernels
from ..rms_norm import FusedNorm
from .layer_stack import LayerStack
from .layers import (
    OwnLayer,
    PackedDecoderLayer,
    PackedEncoderLayer,
    decoder_layers,
    encoder_layers,
)
from .parts import Forward, InputNorm, Rows

__all__ = ["PackedDecoder", "PackedEncoder", "packed_forward"]

WORDS, PLACES, TYPES = "word_embeddings", "position_embeddings", "token_type_embeddings"


class PackedEncoder:
    """BERT and derivatives: embeddings, and layers with a norm after each part."""

    def __init__(
        self,
        model: nn.Module,
        kernels: PackedKernels,
        options: Sequence[AttentionOptions],
        *,
        needs_token_type_ids: bool,
        keep: Container[nn.Module] = (),
    ) -> None:
        """Raises `ValueError` for a model that is not embeddings and layers alone."""
        embeddings = getattr(model, "embeddings", None)
        if not isinstance(embeddings, nn.Module):
            raise ValueError("a model without embeddings")
        self._embeddings: Any = embeddings
        self._project = getattr(model, "embeddings_project", None)
        self._needs_token_type_ids = needs_token_type_ids
        self._kernels = kernels
        self._tables = None if self._project is not None else _tables(embeddings)
        norm = None if self._tables is None else self._tables[1]
        first = None if norm is None else InputNorm(norm.weight, norm.bias)
        self.layers = LayerStack(
            _layers_of(model),
            options,
            partial(encoder_layers, kernels=kernels),
            keep=keep,
            first_norm=first,
        )

    def __call__(
        self, ids: Tensor, positions: Tensor, sequences: Sequences, types: Tensor | None = None
    ) -> Tensor:
        """Hidden states `[total, width]` of ids and the model's own positions, int64 `[total]`.

        `types` are those of the tokens, the first one for all where they are left out.
        """
        layers = self.layers.current
        rows, read = self._embed(ids, positions, types, _reads_float8(layers[0]))
        forward = Forward(sequences, None, self.layers.ones(rows))
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            float8 = _reads_float8(following)
            if isinstance(layer, PackedEncoderLayer):
                rows, read = layer.run(rows, read, forward, float8=float8)
            else:
                rows = layer.of(rows, forward)
                read = quantise_rows(rows) if float8 else rows
        return rows

    def _embed(
        self, ids: Tensor, positions: Tensor, types: Tensor | None, float8: bool
    ) -> tuple[Tensor, Rows]:
        if self._tables is not None:
            rows, quantised = self._kernels.embedding_norm(
                ids, positions, *self._tables, types=types, float8=float8
            )
            return rows, rows if quantised is None else quantised
        given = {}
        if types is not None or self._needs_token_type_ids:
            given["token_type_ids"] = (torch.zeros_like(ids) if types is None else types)[None]
        rows = self._embeddings(input_ids=ids[None], position_ids=positions[None], **given)
        rows = (rows if self._project is None else self._project(rows))[0]
        return rows, quantise_rows(rows) if float8 else rows


class PackedDecoder:
    """Llama and derivatives: embeddings, rotary angles, layers with norms before parts, a norm."""

    def __init__(
        self,
        model: nn.Module,
        kernels: PackedKernels,
        options: Sequence[AttentionOptions],
        *,
        keep: Container[nn.Module] = (),
    ) -> None:
        """Raises `ValueError` for a model that is not these parts alone."""
        parts: list[Any] = [getattr(model, n, None) for n in ("embed_tokens", "rotary_emb", "norm")]
        self._words, self._rotary, self._norm = parts
        if not all(isinstance(part, nn.Module) for part in parts):
            raise ValueError("a model with other parts")
        if type(self._norm) is not FusedNorm:
            raise ValueError("a model with another norm")
        self._kernels = kernels
        self.layers = LayerStack(
            _layers_of(model),
            options,
            partial(decoder_layers, kernels=kernels),
            keep=keep,
            rotary=self._angles,
        )

    def __call__(
        self, ids: Tensor, positions: Tensor, sequences: Sequences, types: Tensor | None = None
    ) -> Tensor:
        """Hidden states `[total, width]` of ids and positions, int64 `[total]`; no `types`."""
        assert types is None
        residual: Tensor = self._words(ids)
        forward = Forward(sequences, self._angles(residual, positions), self.layers.ones(residual))
        rows: Tensor | None = None
        for layer in self.layers.current:
            if isinstance(layer, PackedDecoderLayer):
                rows = layer.run(rows, residual, forward)
            else:
                assert isinstance(layer, OwnLayer)
                residual = layer.of(residual if rows is None else residual + rows, forward)
                rows = None
        found = self._kernels.add_rms_norm(rows, residual, self._norm.weight, self._norm.epsilon)
        assert isinstance(found, Tensor)
        return found

    def _angles(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary(rows[None], positions[None])
        return cos[0], sin[0]


def packed_forward(
    model: nn.Module,
    kernels: PackedKernels,
    options: Sequence[AttentionOptions],
    *,
    needs_token_type_ids: bool,
    keep: Container[nn.Module] = (),
) -> PackedEncoder | PackedDecoder:
    """What runs the model's packed rows; `options` are what each layer asks its attention for.

    Raises `ValueError` where none of its layers is known.
    """
    if hasattr(model, "embeddings"):
        found: PackedEncoder | PackedDecoder = PackedEncoder(
            model, kernels, options, needs_token_type_ids=needs_token_type_ids, keep=keep
        )
    else:
        found = PackedDecoder(model, kernels, options, keep=keep)
    if not found.layers.packed:
        raise ValueError("none of its layers is of a known kind")
    return found


def _reads_float8(layer: Any) -> bool:
    return isinstance(layer, PackedEncoderLayer) and layer.attention.reads_float8


def _layers_of(model: nn.Module) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if len(lists) != 1:
        raise ValueError("a model of several lists of layers, or of none")
    return lists[0]


def _tables(
    embeddings: nn.Module,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], LayerNorm] | None:
    """BERT-style embeddings as tables and a norm; None for others.

    That they are added up and nothing else, the comparison with the model shows.
    """
    parts: dict[str, Any] = leaves(embeddings)
    norm = parts.pop("LayerNorm", None)
    if parts.keys() not in ({WORDS, PLACES}, {WORDS, PLACES, TYPES}):
        return None
    is_plain = all(
        type(table) is nn.Embedding and table.max_norm is None for table in parts.values()
    )
    if not is_plain or type(norm) is not nn.LayerNorm or norm.bias is None:
        return None
    types = parts[TYPES].weight if TYPES in parts else None
    return (
        (parts[WORDS].weight, parts[PLACES].weight, types),
        LayerNorm(norm.weight, norm.bias, norm.eps),
    )
