"""`SparsePooler`: token rows, or a text's vector, to the few dimensions that are not zero.

The logits of a masked language model are as many as the vocabulary for every token. They are
computed for a slice of the vocabulary at a time, and of each slice only what is left of a text is
kept, so nothing of the size of tokens times vocabulary ever exists. In float32 from the logits on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..checkpoint.modules import Module
from ..checkpoint.weights import read_weights
from ..errors import InvalidCheckpoint, UnsupportedModel
from .modules import ModuleContext, in_blocks
from .pooler import Pooler

__all__ = [
    "MOST_DIMENSIONS",
    "LatentHead",
    "SparsePooler",
    "SparseRows",
    "VocabularyHead",
    "positive_entries",
]

MOST_DIMENSIONS = 2**24  # which float32 counts
# An element's bits may depend on its place in what a kernel is given: see `cpu.activation`.
_ELEMENTS = 4096


@dataclass(frozen=True)
class SparseRows:
    """The dimensions of each text that are not zero, text after text."""

    rows: Tensor
    """float32 `[total, 2]`: a dimension and its weight; the dimensions of a text ascend."""
    counts: Tensor
    """Of each text, int64 `[n]`."""


class VocabularyHead(Protocol):
    """The logits of tokens, a slice of the vocabulary at a time."""

    @property
    def dimension(self) -> int:
        """The size of the vocabulary."""

    def slices(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Where each slice begins, and its logits `[rows, slice]` in any floating dtype."""


class SparsePooler:
    """What follows the transformer of a route that gives sparse vectors.

    `pooler` makes a vector of a text (with a `SparseAutoEncoder`), `head` logits of its tokens.
    """

    keeps_rows = False
    is_sparse = True
    reads_last_token_only = False

    def __init__(
        self,
        *,
        head: VocabularyHead,
        strategy: str = "max",
        activation: str = "relu",
        pooler: Pooler | None = None,
        is_plain: bool = False,
    ) -> None:
        """`is_plain`: the logits are weights as they are, without a logarithm."""
        self.dimension = head.dimension
        if self.dimension > MOST_DIMENSIONS:
            raise UnsupportedModel(
                f"its vectors have {self.dimension} dimensions, and {MOST_DIMENSIONS} is the most"
            )
        self._head = head
        self._sums = strategy == "sum"
        self._logarithms = 0 if is_plain else 2 if activation == "log1p_relu" else 1
        self._pooler = pooler

    @property
    def excludes_prompt(self) -> bool:
        """Whether the tokens of a prompt are left out."""
        return self._pooler is not None and self._pooler.excludes_prompt

    @torch.inference_mode()
    def __call__(
        self,
        hidden: Tensor | Sequence[Tensor],
        starts: Tensor,
        lengths: Tensor,
        prompt_lengths: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> SparseRows:
        """Of texts whose rows stand in `hidden` as `Pooler` says."""
        if self._pooler is not None:
            rows = self._pooler(hidden, starts, lengths, prompt_lengths)
            starts, lengths = torch.arange(len(rows), device=rows.device), torch.ones_like(lengths)
        else:
            rows = hidden if isinstance(hidden, Tensor) else hidden[-1]
        kind = _Segments if starts.device.type == "cuda" else _Groups
        texts = kind.of(starts, lengths)
        found = [self._of_slice(*each, texts) for each in self._head.slices(rows)]
        owners, dimensions, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = torch.argsort(owners, stable=True)  # slices ascend, so dimensions do
        weights = weights if self._sums else self._activated(weights)
        rows = torch.stack([dimensions.float(), weights], dim=1)[order]
        return SparseRows(rows, torch.bincount(owners, minlength=len(lengths)))

    def _of_slice(
        self, start: int, logits: Tensor, texts: _Groups | _Segments
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._sums:
            pooled = texts.sums(self._activated(logits.float().relu_()))
        else:
            pooled = texts.maxima(logits).float()
        owners, dimensions, weights = positive_entries(pooled)
        return owners, dimensions + start, weights

    def _activated(self, values: Tensor) -> Tensor:
        """log1p, once or twice, of values that are not negative."""
        flat = values.reshape(-1, 1)
        for _ in range(self._logarithms):
            flat = in_blocks(torch.log1p, flat, _ELEMENTS if flat.device.type == "cpu" else None)
        return flat.view(values.shape)

    def __repr__(self) -> str:
        pooling = "sum" if self._sums else "max"
        return f"SparsePooler(dimension={self.dimension}, pooling={pooling})"


def positive_entries(pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Text, dimension and weight of what is above 0 in float32 `[n, width]`, and of what is NaN."""
    owners, dimensions = torch.nonzero(~(pooled <= 0), as_tuple=True)
    return owners, dimensions, pooled[owners, dimensions]


@dataclass(frozen=True)
class _Segments:
    """Where texts stand in rows, known to a CUDA device alone: one kernel reduces all of them."""

    offsets: Tensor
    """Where each text begins and ends, int64 `[2 × n]`: between two is what belongs to none."""

    @classmethod
    def of(cls, starts: Tensor, lengths: Tensor) -> _Segments:
        return cls(torch.stack([starts, starts + lengths], dim=1).flatten())

    def maxima(self, logits: Tensor) -> Tensor:
        """The largest of each column over the rows of a text, `[n, width]`."""
        return self._reduced(logits, "max")

    def sums(self, weights: Tensor) -> Tensor:
        """The sum of each column over the rows of a text, row by row, `[n, width]`."""
        return self._reduced(weights, "sum")

    def _reduced(self, rows: Tensor, how: str) -> Tensor:
        return torch.segment_reduce(rows, how, offsets=self.offsets, axis=0, unsafe=True)[::2]


@dataclass(frozen=True)
class _Groups:
    """Where texts stand in rows, known to the host: a kernel for each run of equal lengths."""

    groups: Sequence[tuple[int, int, int, int]]
    """Texts of one length that follow each other: the first of them, how many, where its rows
    begin, and the length."""
    count: int

    @classmethod
    def of(cls, starts: Tensor, lengths: Tensor) -> _Groups:
        groups: list[tuple[int, int, int, int]] = []
        places = zip(starts.tolist(), lengths.tolist(), strict=True)
        for text, (start, length) in enumerate(places):
            if groups:
                first, count, begin, same = groups[-1]
                if same == length and begin + count * length == start:
                    groups[-1] = (first, count + 1, begin, same)
                    continue
            groups.append((text, 1, start, length))
        return cls(groups, len(starts))

    def maxima(self, logits: Tensor) -> Tensor:
        """The largest of each column over the rows of a text, `[n, width]`."""
        found = logits.new_empty((self.count, logits.shape[1]))
        for first, count, start, length in self.groups:
            own = logits[start : start + count * length].view(count, length, -1)
            torch.amax(own, dim=1, out=found[first : first + count])
        return found

    def sums(self, weights: Tensor) -> Tensor:
        """The sum of each column over the rows of a text, row by row: no other order is used."""
        found = weights.new_zeros((self.count, weights.shape[1]))
        for first, count, start, length in self.groups:
            own = weights[start : start + count * length].view(count, length, -1)
            for row in range(length):
                found[first : first + count] += own[:, row]
        return found


class LatentHead:
    """The latents of a `SparseAutoEncoder` before its top k: those above 0 may be kept."""

    def __init__(
        self, weight: Tensor, shift: Tensor, bias: Tensor, *, normalize: bool, invariant: bool
    ) -> None:
        self._weight, self._shift, self._bias = weight, shift, bias
        self._normalize = normalize
        self._block = 1 if invariant else None
        self.dimension = len(weight)

    @classmethod
    def load(cls, module: Module, place: ModuleContext) -> LatentHead:
        """From a module's folder. Raises `InvalidCheckpoint` for weights that do not fit."""
        weights, options = read_weights(module.path), module.options
        if "decoder.linear.weight" in weights:  # one weight of two names, of which either is saved
            weights.setdefault("encoder.weight", weights["decoder.linear.weight"])
        size = (options["out_features"], options["in_features"])
        expected = {"encoder.weight": size, "pre_bias": size[1:], "latent_bias": size[:1]}
        found = {name: tuple(weights[name].shape) for name in expected if name in weights}
        if found != expected or size[1] != place.width:
            raise InvalidCheckpoint(
                f"{module.path}: SparseAutoEncoder needs the weights {expected} for vectors of "
                f"{place.width} numbers, and its file has {found}"
            )
        taken = (weights[name].to(place.device, torch.float32) for name in expected)
        return cls(*taken, normalize=options["normalize"], invariant=place.batch_invariant)

    def slices(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """All latents at once: they are few for a text."""
        yield 0, in_blocks(self._latents, rows, self._block)

    def _latents(self, rows: Tensor) -> Tensor:
        if self._normalize:
            rows = rows - rows.mean(dim=-1, keepdim=True)
            rows = rows / (rows.std(dim=-1, keepdim=True) + 1e-5)
        return linear(rows - self._shift, self._weight, self._bias)
