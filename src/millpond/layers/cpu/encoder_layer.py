"""Fused encoder layers for a CPU: a BERT-style one as a dozen operators, without calls of modules.

For a short query, most of what a layer takes is not arithmetic but the overhead around it: every
module and every operator costs as much as a small product. So query, key and value are one
product, residuals are added in the product's kernel where they can be, and the operators are called
directly.

In int8 the same is done by kernels of our own (`int8`).

Layers are known by the names of their parts, which many models share with BERT. Each has to give
what it gave before, on rows of noise, or it stays as it was. How they attend is left to the
attention that the model is set to, stock or packed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...attention.compiled import LEAST_LENGTH, load_kernel
from ...attention.implementations import attention_function
from ...attention.packed import PackedSequences
from ...cpu import scripted
from ...cpu.preemption import expects_queries, yield_to_queries
from ...cpu.row_buckets import block_rows
from ..parts import BERT, DISTILBERT, is_encoder_layer, linear_of
from ..replace import PROBE_ROWS, first_equal, probe_rows
from . import encoder_functions
from .attention import (
    Attend,
    attend_firsts,
    attend_in_groups,
    compiled_attention,
)
from .int8.attention import has_tile_attention, tile_attention
from .int8.linear import Int8Linear
from .int8.product import Int8Norm
from .int8.smoothquant import Inputs, in_int8
from .linear import NormOptions, PrepackedLinear, Product, norm_options, prepacked

__all__ = ["FusedForward", "FusedLayer", "fuse_layers"]

INT8_TOLERANCE = 8e-2

AfterAttention = tuple[list[Tensor], list[Tensor | None], list[Tensor | None], list[float]]
"""What `encoder_functions.after_attention` takes of a layer."""


class LayerProduct(Protocol):
    """A product of a layer with every row by itself: a `Product`, or an `Int8Product`."""

    def of(self, rows: Tensor) -> Tensor:
        """`[n, in]` to `[n, out]`."""

    def gelu_of(self, rows: Tensor, following: Any) -> Any:
        """The GELU of that, as the product that follows takes it."""

    def norm_of_sum(self, rows: Any, residual: Tensor, norm: Any) -> Tensor:
        """Layer norm, with a norm of the product's kind, of that and `residual` `[n, out]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLayer:
    """A layer's computation."""

    joined: LayerProduct
    """To query, key and value, `[n, 3 × heads × size]`."""
    out: LayerProduct
    norm: NormOptions | Int8Norm
    up: LayerProduct
    down: LayerProduct
    last_norm: NormOptions | Int8Norm
    attend: Attend
    head_size: int
    scaling: float
    after: AfterAttention | None
    """What follows attention as one call, where it can be."""
    block_rows: int | None
    """Rows that ingestion computes between two moments to yield; None for all at once."""

    def packed(self, rows: Tensor, sequences: PackedSequences) -> Tensor:
        """Rows of a packed row, `[total, width]` in and out."""
        most = self._rows_at_once(len(rows))
        attended = self._attend(self._join(rows, most), sequences, most)
        blocks = zip(torch.split(attended, most), torch.split(rows, most), strict=True)
        return _together([self._after(*block) for block in blocks])

    def firsts(self, rows: Tensor, sequences: PackedSequences, places: Tensor) -> Tensor:
        """Of the rows after the layer those at `places`, int64: the first of each sequence, and
        after them any, which are filled up with."""
        joined = self._join(rows, self._rows_at_once(len(rows)))
        attended = self.attend_firsts(joined, sequences, places)
        return self._after(attended, rows.index_select(0, places))

    def _rows_at_once(self, rows: int) -> int:
        """Before it yields, if queries may come."""
        return rows if self.block_rows is None or not expects_queries() else self.block_rows

    def _join(self, rows: Tensor, most: int) -> Tensor:
        return _together([self.joined.of(block) for block in torch.split(rows, most)])

    def _attend(self, joined: Tensor, sequences: PackedSequences, most: int) -> Tensor:
        if most >= len(joined):
            return self.attend(joined, sequences, self.head_size, self.scaling)
        blocks = sequences.in_blocks(most)
        stops = [first for first, _ in blocks[1:]] + [len(joined)]
        found = []
        for (first, part), stop in zip(blocks, stops, strict=True):
            yield_to_queries()
            found.append(self.attend(joined[first:stop], part, self.head_size, self.scaling))
        return _together(found)

    def attend_firsts(self, joined: Tensor, sequences: PackedSequences, places: Tensor) -> Tensor:
        """What `attend` gives at these places, and any numbers after those of first tokens."""
        given = joined, sequences, self.head_size, self.scaling
        return attend_firsts(self.attend, *given, places)

    def with_attention(
        self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor
    ) -> Tensor:
        """Of texts `[n, length, width]`; `attend` is given `[n, heads, length, size]` and gives
        `[n, length, heads, size]`."""
        rows_2d = rows.reshape(-1, rows.shape[-1])
        joined = self.joined.of(rows_2d).view(*rows.shape[:2], 3, -1, self.head_size)
        attended = attend(*joined.permute(2, 0, 3, 1, 4).unbind())
        return self._after(attended.reshape(len(rows_2d), -1), rows_2d).view(rows.shape)

    def _after(self, attended: Tensor, rows: Tensor) -> Tensor:
        if self.after is not None:
            yield_to_queries()
            out: Tensor = scripted.run(
                encoder_functions.after_attention, attended, rows, *self.after
            )
            return out
        rows = self.out.norm_of_sum(attended, rows, self.norm)
        return self.down.norm_of_sum(self.up.gelu_of(rows, self.down), rows, self.last_norm)


def _together(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))


@torch.no_grad()
def fuse_layers(
    model: nn.Module,
    *,
    batch_invariant: bool = False,
    int8_inputs: Inputs | None = None,
    keep: Container[nn.Module] = (),
) -> int:
    """Give a model's encoder layers on the CPU a fused forward; how many got one is returned.

    One with a linear layer to `keep` gets none. With `batch_invariant` a row's bits do not depend
    on the number of rows. With `int8_inputs`, what went into their linear layers, they run in int8.
    """
    return sum(_fuse(layer, batch_invariant, int8_inputs, keep) for layer in list(model.modules()))


def _fuse(
    layer: nn.Module, batch_invariant: bool, int8_inputs: Inputs | None, keep: Container[nn.Module]
) -> bool:
    names = next((names for names in (BERT, DISTILBERT) if is_encoder_layer(layer, names)), None)
    if names is None:
        return False
    parts: dict[str, Any] = {part: layer.get_submodule(name) for part, name in names.items()}
    if any(part in keep for part in parts.values()):
        return False
    attention: Any = layer.get_submodule(names["query"].rpartition(".")[0])
    query = parts["query"]
    if int8_inputs is None:
        rows = probe_rows(1, PROBE_ROWS, query.in_features, dtype=query.weight.dtype)
        found = first_equal(layer, _prepacked(parts, attention, batch_invariant), rows)
    elif query in int8_inputs:
        rows = int8_inputs[query][-1].unsqueeze(0)
        candidates = _in_int8(parts, attention, int8_inputs)
        found = first_equal(layer, candidates, rows, tolerance=INT8_TOLERANCE)
    else:  # it did not run
        found = None
    if found is None:
        return False
    for part, linear in found.linears.items():  # the old weights are let go
        layer.set_submodule(names[part], linear)
    for part in ("key", "value", "activation"):
        layer.set_submodule(names[part], nn.Identity())
    layer.forward = found
    return True


@dataclass(frozen=True, slots=True)
class FusedForward:
    """A layer's forward as transformers calls it, and the linear layers whose weights it reads."""

    fused: FusedLayer
    attention: Any
    linears: Mapping[str, nn.Linear]

    @classmethod
    def of(
        cls,
        linears: Mapping[str, PrepackedLinear | Int8Linear],
        parts: Mapping[str, Any],
        attention: Any,
        norm: Callable[[nn.LayerNorm], NormOptions | Int8Norm],
        attend: Attend,
    ) -> FusedForward:
        """By these linear layers, with `norm` of the layer's own norms."""
        products = {part: linear.product() for part, linear in linears.items()}
        fused = FusedLayer(
            joined=products["query"],
            out=products["out"],
            norm=norm(parts["norm"]),
            up=products["up"],
            down=products["down"],
            last_norm=norm(parts["last_norm"]),
            attend=attend,
            head_size=attention.attention_head_size,
            scaling=attention.scaling,
            after=_after_attention(
                [products[part] for part in ("out", "up", "down")],
                [norm(parts[part]) for part in ("norm", "last_norm")],
            ),
            block_rows=_block_rows(linears.values()),
        )
        return cls(fused, attention, linears)

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *_: Any,
        **options: Any,
    ) -> Tensor:
        scaling = self.fused.scaling

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            function = attention_function(self.attention.config._attn_implementation)
            attended: Tensor = function(
                self.attention, query, key, value, attention_mask, scaling=scaling, **options
            )[0]
            return attended

        return self.fused.with_attention(attend, hidden_states)


def _after_attention(
    products: Sequence[LayerProduct], norms: Sequence[Any]
) -> AfterAttention | None:
    whole = [each for each in products if isinstance(each, Product) and each.is_whole]
    if len(whole) < len(products):
        return None
    scales = [each for _, weight, bias, _ in norms for each in (weight, bias)]
    epsilons = [epsilon for *_, epsilon in norms]
    weights = [product.packed[0] for product in whole]
    return weights, [product.bias for product in whole], scales, epsilons


def _block_rows(linears: Iterable[nn.Linear]) -> int | None:
    """For products in int8, which are quick, none."""
    if not all(isinstance(linear, PrepackedLinear) for linear in linears):
        return None
    return block_rows(max(linear.in_features * linear.out_features for linear in linears))


def _prepacked(
    parts: Mapping[str, Any], attention: Any, batch_invariant: bool
) -> Iterator[FusedForward]:
    """Raises `ValueError` where a linear layer cannot be prepacked."""
    found = {}
    for part, linear in _linears(parts).items():
        packed = prepacked(linear, batch_invariant)
        if packed is None:
            raise ValueError(f"{part} cannot be prepacked")
        found[part] = packed
    found["up"].post_op = "gelu"
    dtype, size = parts["query"].weight.dtype, attention.attention_head_size
    attend = compiled_attention(dtype, size, LEAST_LENGTH) or attend_in_groups
    yield FusedForward.of(found, parts, attention, norm_options, attend)


def _in_int8(parts: Mapping[str, Any], attention: Any, inputs: Inputs) -> Iterator[FusedForward]:
    found = {part: in_int8(one, inputs[parts[part]]) for part, one in _linears(parts).items()}
    dtype, size = parts["query"].weight.dtype, attention.attention_head_size
    attend: Attend = attend_in_groups
    if has_tile_attention(dtype, size):
        attend = tile_attention
    elif compiled := compiled_attention(dtype, size, 1):
        load_kernel()  # Numba is imported anyway
        attend = compiled
    yield FusedForward.of(found, parts, attention, Int8Norm.of, attend)


def _linears(parts: Mapping[str, Any]) -> dict[str, nn.Linear]:
    """The products of a layer by the names of their parts; "query" is joined with two others."""
    joined = _joined(parts["query"], parts["key"], parts["value"])
    return {"query": joined, **{part: parts[part] for part in ("out", "up", "down")}}


def _joined(*linears: nn.Linear) -> nn.Linear:
    """Layers that have the same input as one."""
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    weight = torch.cat([linear.weight for linear in linears])
    return linear_of(weight, torch.cat(biases) if biases else None)
