"""`LayerStack`: the layers of a packed model, each compared, and which parts are in float8."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ....attention.packed import AttentionOptions, PackedSequences
from ....attention.varlen import uses_varlen
from ...replace import PROBE_ROWS, TOLERANCE, first_equal, probe_rows
from ..float8 import Float8Product
from .layers import OwnLayer, PackedDecoderLayer, PackedEncoderLayer
from .parts import Forward, HalfProduct, InputNorm

__all__ = ["LayerStack", "Part"]

ROUNDINGS = 3  # a layer is several products, each of them rounded
PARTS = ("attention", "feed_forward")
Angles = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
PackedLayer = PackedEncoderLayer | PackedDecoderLayer
Layer = PackedLayer | OwnLayer
Candidates = Callable[[nn.Module, AttentionOptions], Iterator[PackedLayer]]


class Part(NamedTuple):
    """What is in float8 as a whole, or not."""

    layer: int
    name: str
    """Of `PARTS`."""


class LayerStack:
    """Layers in half precision, and the same with parts in float8."""

    def __init__(
        self,
        layers: nn.ModuleList,
        options: Sequence[AttentionOptions],
        candidates: Candidates,
        *,
        keep: Container[nn.Module],
        first_norm: InputNorm | None = None,
        rotary: Angles | None = None,
    ) -> None:
        """`options` are those of each layer's attention. Layers with a module to `keep` stay their
        own. `first_norm` is what the first layer's rows
        come from; `rotary` gives cosines and sines of positions."""
        self._modules = list(layers)
        self._rotary = rotary
        self._half = [
            OwnLayer(layer, asked.causal)
            if _stays(layer, keep)
            else self._packed(layer, asked, candidates)
            for layer, asked in zip(layers, options, strict=True)
        ]
        self._first_norm = first_norm
        self._float8: dict[Part, Any] = {}
        self.current: list[Layer] = list(self._half)
        """The layers as they run now."""

    @property
    def packed(self) -> int:
        """How many layers do not run as transformers has them."""
        return sum(not isinstance(layer, OwnLayer) for layer in self._half)

    @property
    def in_float8(self) -> int:
        """How many parts are in float8."""
        parts = (getattr(layer, name, None) for layer in self.current for name in PARTS)
        return sum(getattr(part, "reads_float8", False) for part in parts)

    def parts(self) -> dict[Part, int]:
        """All that can be in float8, and how many weights are in it."""
        return {
            Part(i, name): sum(w.numel() for w in _weights(getattr(layer, name)))
            for i, layer in enumerate(self._half)
            if not isinstance(layer, OwnLayer)
            for name in PARTS
        }

    def use_float8(self, parts: Collection[Part]) -> None:
        """Run these parts in float8, and the others in half precision.

        Raises `ValueError` for one whose sizes float8 products do not take.
        """
        for part in parts:
            if part not in self._float8:
                half = getattr(self._half[part.layer], part.name)
                self._float8[part] = half.in_float8(self._norm_before(part))
        self.current = [self._with(i, layer, parts) for i, layer in enumerate(self._half)]

    def _with(self, i: int, layer: Layer, parts: Collection[Part]) -> Layer:
        if isinstance(layer, OwnLayer):
            return layer
        chosen = [Part(i, name) for name in PARTS if Part(i, name) in parts]
        return replace(layer, **{part.name: self._float8[part] for part in chosen})

    def _norm_before(self, part: Part) -> InputNorm | None:
        """The norm that a part's rows come from; None where they come from something else."""
        layer = self._half[part.layer]
        if isinstance(layer, PackedDecoderLayer):
            norm = layer.norm if part.name == "attention" else layer.last_norm
            return InputNorm(norm[0], None)
        assert isinstance(layer, PackedEncoderLayer)
        if part.name == "feed_forward":
            return InputNorm(layer.norm.weight, layer.norm.bias)
        if part.layer == 0:
            return self._first_norm
        before = self._half[part.layer - 1]
        if not isinstance(before, PackedEncoderLayer):
            return None
        return InputNorm(before.last_norm.weight, before.last_norm.bias)

    def release(self) -> None:
        """Let go of what does not run now, for good: the model's own linear layers get the float8
        weights in the place of those in half precision."""
        for i, (half, now) in enumerate(zip(self._half, self.current, strict=True)):
            for name in PARTS:
                before, after = getattr(half, name, None), getattr(now, name, None)
                if before is not after:
                    _hand_over(self._modules[i], before, after)
        self._half = list(self.current)
        self._float8 = {}

    def ones(self, rows: Tensor) -> Tensor | None:
        """Scales for rows whose scale is in the weights; None where nothing is in float8."""
        return rows.new_ones(len(rows), 1, dtype=torch.float32) if self.in_float8 else None

    def _packed(self, layer: nn.Module, options: AttentionOptions, candidates: Candidates) -> Layer:
        own = OwnLayer(layer, options.causal)
        for candidate in candidates(layer, options):
            rows, forward = self._probe(candidate)
            run = partial(candidate.of, forward=forward)
            tolerance = ROUNDINGS * TOLERANCE[rows.dtype]
            expected = partial(own.of, forward=forward)
            if first_equal(expected, [run], rows, tolerance=tolerance) is not None:
                return candidate
        return own

    def _probe(self, layer: PackedLayer) -> tuple[Tensor, Forward]:
        """Rows of noise of one text, and what goes with them."""
        norm: Tensor = layer.last_norm[0]
        rows = probe_rows(PROBE_ROWS, len(norm), dtype=norm.dtype, device=norm.device)
        edges = torch.tensor([0, PROBE_ROWS], dtype=torch.int32, device=norm.device)
        boundaries = edges if uses_varlen(norm.device, norm.dtype) else None
        sequences = PackedSequences.of(np.array([PROBE_ROWS]), boundaries=boundaries)
        positions = torch.arange(PROBE_ROWS, device=norm.device)
        angles = None if self._rotary is None else self._rotary(rows, positions)
        return rows, Forward(sequences, angles, None)

    def __repr__(self) -> str:
        return (
            f"LayerStack(layers={len(self.current)}, packed={self.packed}, "
            f"float8_parts={self.in_float8})"
        )


def _stays(layer: nn.Module, keep: Container[nn.Module]) -> bool:
    return "forward" in vars(layer) or any(part in keep for part in layer.modules())


def _hand_over(module: nn.Module, before: Any, after: Any) -> None:
    """Give a part's float8 weights to the linear layers that have those in half precision."""
    for half, float8 in zip(before.products, after.products, strict=True):
        if not isinstance(float8, Float8Product):
            continue
        begin = half.weight.data_ptr()
        stride = half.weight.stride(0) * half.weight.element_size()
        for linear in module.modules():
            weight = linear.weight if isinstance(linear, nn.Linear) else None
            row = -1 if weight is None else (weight.data_ptr() - begin) // stride
            if weight is not None and 0 <= row < len(half.weight):
                rows = float8.values.t()[row : row + len(weight)]
                linear.weight = nn.Parameter(rows, requires_grad=False)


def _weights(part: Any) -> list[Tensor]:
    """The half-precision ones among a part's products."""
    return [each.weight for each in part.products if isinstance(each, HalfProduct)]
