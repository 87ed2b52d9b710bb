"""`KVCache`: the keys and values of a causal model's layers, for prefixes that texts share.

It is memory in slots of one token each and nothing else: which tokens a slot holds, and what
may read it, is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KVCache", "LayerShape"]


@dataclass(frozen=True)
class LayerShape:
    """What a layer keeps of one token: keys and values of `heads` heads."""

    heads: int
    key_size: int
    value_size: int

    @property
    def elements(self) -> int:
        return self.heads * (self.key_size + self.value_size)


class KVCache:
    """`slots` tokens of every layer. Layers are added as they are first written to.

    One more slot, `null_slot`, is for what has to be written somewhere and is never read.
    """

    def __init__(self, slots: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.slots = slots
        self.dtype = dtype
        self.device = device
        self.shapes: dict[int, LayerShape] = {}
        """What is kept, by layer."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def like(self, slots: int) -> KVCache:
        """An empty one with this one's layers, all of them allocated."""
        made = KVCache(slots, dtype=self.dtype, device=self.device)
        for layer, shape in self.shapes.items():
            made._add(layer, shape)
        return made

    @property
    def null_slot(self) -> int:
        """The slot that is written to and never read."""
        return self.slots

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token in all layers."""
        return sum(shape.elements for shape in self.shapes.values()) * self.dtype.itemsize

    def _add(self, layer: int, shape: LayerShape) -> None:
        keys, values = (
            torch.empty(self.slots + 1, shape.heads, size, dtype=self.dtype, device=self.device)
            for size in (shape.key_size, shape.value_size)
        )
        self._layers[layer], self.shapes[layer] = (keys, values), shape

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep `[n, heads, size]` keys and values in these slots, int64 `[n]`."""
        if layer not in self._layers:
            self._add(layer, LayerShape(keys.shape[1], keys.shape[2], values.shape[2]))
        kept_keys, kept_values = self._layers[layer]
        kept_keys.index_copy_(0, slots, keys)
        kept_values.index_copy_(0, slots, values)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of these slots, `[n, heads, size]` each."""
        keys, values = self._layers[layer]
        return keys.index_select(0, slots), values.index_select(0, slots)

    def __repr__(self) -> str:
        size = self.slots * self.bytes_per_slot / 2**20
        return f"KVCache(slots={self.slots}, layers={len(self._layers)}, MiB={size:.0f})"
