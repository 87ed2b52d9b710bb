"""Layers of encoders and decoders as parts: found by the names of what they are made of.

A layer of parts is compared with the layer it is made from before it is used, and runs as that one
where they differ. `PackedEncoderLayer` is that of BERT and derivatives, which normalise after each
part, and `PackedDecoderLayer` that of Llama, Mistral and Qwen, which normalise before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ....attention.packed import AttentionOptions
from ...parts import BERT, DISTILBERT, are_linear, is_encoder_layer, leaves
from ...split import RowSplitLinear
from ..kernels.packed import LayerNorm, PackedKernels
from ..rms_norm import FusedNorm
from .parts import (
    Attention,
    Forward,
    GatedFeedForward,
    GeluFeedForward,
    HalfProduct,
    Rows,
    join,
)

__all__ = [
    "OwnLayer",
    "PackedDecoderLayer",
    "PackedEncoderLayer",
    "decoder_layers",
    "encoder_layers",
]

DECODER = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
DECODER_NORMS = {"norm": "input_layernorm", "last_norm": "post_attention_layernorm"}
HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
ACTIVATION = "mlp.act_fn"  # a function in some versions


@dataclass(frozen=True, slots=True)
class OwnLayer:
    """A layer that runs as transformers has it."""

    layer: nn.Module
    is_causal: bool = True

    def of(self, rows: Tensor, forward: Forward) -> Tensor:
        """`[n, width]` in and out."""
        options: dict[str, Any] = {"packed_sequences": forward.sequences}
        if forward.angles is not None:
            options["position_embeddings"] = tuple(each.unsqueeze(0) for each in forward.angles)
            options["is_causal"] = self.is_causal
        found = self.layer(rows.unsqueeze(0), **options)
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out.view(rows.shape)


@dataclass(frozen=True, slots=True)
class PackedEncoderLayer:
    """A layer with a norm after each of its parts."""

    attention: Attention
    norm: LayerNorm
    feed_forward: GeluFeedForward
    last_norm: LayerNorm
    kernels: PackedKernels

    def of(self, rows: Tensor, forward: Forward) -> Tensor:
        """`[n, width]` in and out."""
        return self.run(rows, rows, forward, float8=False)[0]

    def run(
        self, rows: Tensor, read: Rows, forward: Forward, *, float8: bool
    ) -> tuple[Tensor, Rows]:
        """Rows, and the same as the layer's first product reads them; `float8` says how the next
        layer does."""
        attended = self.attention.of(read, forward)
        rows, read = self._norm(attended, rows, self.norm, self.feed_forward.reads_float8)
        return self._norm(self.feed_forward.of(read, forward), rows, self.last_norm, float8)

    def _norm(
        self, rows: Tensor, residual: Tensor, norm: LayerNorm, float8: bool
    ) -> tuple[Tensor, Rows]:
        out, quantised = self.kernels.add_layer_norm(rows, residual, norm, float8=float8)
        return out, out if quantised is None else quantised


def encoder_layers(
    layer: nn.Module, options: AttentionOptions, kernels: PackedKernels
) -> Iterator[PackedEncoderLayer]:
    """Candidates for a layer's place, the fastest first; none for a layer of another kind."""
    kinds = (BERT, DISTILBERT)
    names = next((kind for kind in kinds if is_encoder_layer(layer, kind, may_be_split=True)), None)
    if names is None:
        return
    parts: dict[str, Any] = {part: layer.get_submodule(name) for part, name in names.items()}
    own: Any = layer.get_submodule(names["query"].rpartition(".")[0])
    up = HalfProduct(parts["up"].weight, parts["up"].bias)
    made = PackedEncoderLayer(
        attention=_attention(parts, own.attention_head_size, options, kernels),
        norm=_layer_norm(parts["norm"]),
        feed_forward=GeluFeedForward(up, _product(parts["down"]), kernels),
        last_norm=_layer_norm(parts["last_norm"]),
        kernels=kernels,
    )
    if up.bias is not None:
        yield made
    gelu: Callable[[Tensor], Tensor] = parts["activation"]
    yield replace(made, feed_forward=replace(made.feed_forward, gelu=gelu))


@dataclass(frozen=True, slots=True)
class PackedDecoderLayer:
    """A layer with a norm before each of its parts."""

    norm: tuple[Tensor, float]
    """Weight `[width]` and epsilon."""
    attention: Attention
    last_norm: tuple[Tensor, float]
    feed_forward: GatedFeedForward
    kernels: PackedKernels

    def of(self, rows: Tensor, forward: Forward) -> Tensor:
        """`[n, width]` in and out."""
        residual = rows.clone()
        return residual + self.run(None, residual, forward)

    def run(self, rows: Tensor | None, residual: Tensor, forward: Forward) -> Tensor:
        """Rows to add to the residual ones, of the layer before and of this one.

        Those that come in are added, in place, and so are those of attention.
        """
        add = self.kernels.add_rms_norm
        read = add(rows, residual, *self.norm, float8=self.attention.reads_float8)
        rows = self.attention.of(read, forward)
        read = add(rows, residual, *self.last_norm, float8=self.feed_forward.reads_float8)
        return self.feed_forward.of(read, forward)


def decoder_layers(
    layer: nn.Module, options: AttentionOptions, kernels: PackedKernels
) -> Iterator[PackedDecoderLayer]:
    """The candidate for a layer's place; none for a layer of another kind."""
    if not _is_decoder_layer(layer):
        return
    parts: dict[str, Any] = {name: layer.get_submodule(path) for name, path in DECODER.items()}
    own: Any = layer.get_submodule("self_attn")
    yield PackedDecoderLayer(
        norm=_rms_norm(layer.get_submodule(DECODER_NORMS["norm"])),
        attention=_attention(parts, own.head_dim, options, kernels, _head_norms(layer)),
        last_norm=_rms_norm(layer.get_submodule(DECODER_NORMS["last_norm"])),
        feed_forward=GatedFeedForward(
            join([parts["gate"], parts["up"]]), _product(parts["down"]), kernels
        ),
        kernels=kernels,
    )


def _is_decoder_layer(layer: nn.Module) -> bool:
    found = leaves(layer)
    found.pop(ACTIVATION, None)
    norms = {**DECODER_NORMS, **HEAD_NORMS}
    known = {*DECODER.values(), *DECODER_NORMS.values()}
    return (
        found.keys() in (known, known | set(HEAD_NORMS.values()))
        and are_linear({k: found[path] for k, path in DECODER.items()}, may_be_split=True)
        and all(type(found[path]) is FusedNorm for path in norms.values() if path in found)
    )


def _head_norms(layer: nn.Module) -> tuple[Tensor, Tensor, float] | None:
    attention = layer.get_submodule("self_attn")
    if not hasattr(attention, "q_norm"):
        return None
    (query, epsilon), (key, _) = (
        _rms_norm(layer.get_submodule(path)) for path in HEAD_NORMS.values()
    )
    return query, key, epsilon


def _rms_norm(norm: Any) -> tuple[Tensor, float]:
    return norm.weight, norm.epsilon


def _layer_norm(norm: Any) -> LayerNorm:
    return LayerNorm(norm.weight, norm.bias, norm.eps)


def _product(linear: Any) -> HalfProduct | RowSplitLinear:
    if isinstance(linear, RowSplitLinear):
        return linear
    return HalfProduct(linear.weight, linear.bias)


def _attention(
    parts: Mapping[str, Any],
    size: int,
    options: AttentionOptions,
    kernels: PackedKernels,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> Attention:
    projections = [parts["query"], parts["key"], parts["value"]]
    queries, keys, _ = (linear.out_features // size for linear in projections)
    return Attention(
        joined=join(projections),
        out=_product(parts["out"]),
        heads=(queries, keys),
        size=size,
        options=options,
        norms=norms,
        kernels=kernels,
    )
