"""Linear layers for a CPU: weights laid out once for its matrix kernels, GELU done in them.

`nn.Linear` lays its weight out anew at every call, which is most of the time of a short query.
torch has operators that do it once, but only under private names (`onednn`): they are looked for,
each layer is compared with the one it replaces, and whatever does not agree stays as it was.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cpu.huge_pages import use_huge_pages
from ...cpu.preemption import yield_to_queries
from ..classes import transformers_classes
from ..parts import is_exact_gelu, linear_of
from ..replace import PROBE_ROWS, first_equal, probe_rows, replace_children
from .batch_invariance import (
    PLAIN_PRODUCT,
    invariant_columns,
    is_invariant,
    tried_size,
    whole_units,
)
from .int8.linear import Int8Linear
from .onednn import OPERATORS, memory_of, multiply, pack

__all__ = [
    "NormOptions",
    "PrepackedLinear",
    "Product",
    "fuse_gelus",
    "has_invariant_products",
    "norm_options",
    "prepack_linears",
    "prepacked",
    "use_huge_pages_for_weights",
]

DTYPES = (torch.float32, torch.bfloat16)
NormOptions = tuple[tuple[int, ...], Tensor | None, Tensor | None, float]
"""What `torch.layer_norm` takes after the rows."""


class PrepackedLinear(nn.Linear):
    """A linear layer whose weight has only a dtype and a shape; its values are in `packed`."""

    packed: tuple[Tensor, ...]
    """The weight in pieces that follow each other, most often one."""
    post_op = "none"
    """The post-op, which the kernel applies to each output: "none" or "gelu"."""

    @classmethod
    def of(cls, linear: nn.Linear, columns: int | None = None) -> PrepackedLinear:
        """The layer as one product, or as several of `columns` columns, the last maybe of fewer."""
        has_bias = linear.bias is not None
        size = linear.in_features, linear.out_features
        made = cls(*size, bias=has_bias, device="meta", dtype=linear.weight.dtype)
        made.weight.requires_grad_(False)
        made.bias = linear.bias
        weight = linear.weight.detach()
        if columns is not None:
            weight = functional.pad(weight, (0, whole_units(size[0]) - size[0]))
        pieces = torch.split(weight, columns or linear.in_features, dim=1)
        # Kept out of the module's own bookkeeping: such tensors can be neither copied nor saved.
        made.__dict__["packed"] = tuple(map(pack, pieces))
        return made.eval()

    def forward(self, input: Tensor) -> Tensor:
        yield_to_queries()
        return multiply(input, self.packed, self.bias, self.post_op)

    def product(self) -> Product:
        """What it computes, without the cost of a module's call."""
        whole = len(self.packed) == 1 and self.packed[0].shape[1] == self.in_features
        return Product(self.packed, self.bias, self.post_op, whole)


@dataclass(frozen=True, slots=True)
class Product:
    """The computation of a prepacked layer."""

    packed: tuple[Tensor, ...]
    bias: Tensor | None
    post_op: str
    is_whole: bool
    """Whether one call of the kernel does it."""

    def of(self, rows: Tensor) -> Tensor:
        """The product with rows `[n, in features]`."""
        yield_to_queries()
        if not self.is_whole:
            return multiply(rows, self.packed, self.bias, self.post_op)
        out: Tensor = OPERATORS._linear_pointwise(
            rows, self.packed[0], self.bias, self.post_op, [], "none"
        )
        return out

    def gelu_of(self, rows: Tensor, following: Product) -> Tensor:
        """The exact GELU of the product, which its kernel applies."""
        assert self.post_op == "gelu"
        return self.of(rows)

    def norm_of_sum(self, rows: Tensor, residual: Tensor, norm: NormOptions) -> Tensor:
        """Layer norm of the product and a residual `[n, out features]`."""
        return torch.layer_norm(self.added_to(residual, rows), *norm)

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """The same and a residual `[n, out features]`, which is added before the kernel rounds."""
        assert self.post_op == "none"
        if not self.is_whole:
            return self.of(rows).add_(residual)
        yield_to_queries()
        out: Tensor = OPERATORS._linear_pointwise.binary(
            rows, residual, self.packed[0], self.bias, "add"
        )
        return out


def prepack_linears(
    model: nn.Module, *, batch_invariant: bool = False, keep: Container[nn.Module] = ()
) -> int:
    """Replace the linear layers of a model on the CPU but those to `keep`; how many is returned.

    With `batch_invariant` a row has identical bits for every number of rows, wherever that can be.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    return replace_children(model, partial(prepacked, batch_invariant=batch_invariant), keep=keep)


@torch.no_grad()
def fuse_gelus(model: nn.Module) -> int:
    """Let prepacked layers do the exact GELU that follows them; how many is returned.

    Which layer an activation follows is in the code of their parent, so only a parent that has
    these two and nothing else is looked at, and it has to give what it gave before.
    """
    return sum(_fused(parent) for parent in model.modules())


def _fused(parent: nn.Module) -> bool:
    children = dict(parent.named_children())
    linears = [c for c in children.values() if type(c) is PrepackedLinear and c.post_op == "none"]
    gelus = [name for name, child in children.items() if is_exact_gelu(child)]
    if len(children) != 2 or len(linears) != 1 or len(gelus) != 1:
        return False
    (linear,), (name,) = linears, gelus

    def fused(rows: Tensor) -> Tensor:
        linear.post_op = "gelu"
        setattr(parent, name, nn.Identity())
        out: Tensor = parent(rows)
        return out

    agrees = first_equal(parent, [fused], _probe(linear)) is not None
    if not agrees:
        linear.post_op = "none"
        setattr(parent, name, children[name])
    return agrees


def use_huge_pages_for_weights(model: nn.Module) -> int:
    """Put a model's prepacked weights into huge pages where they can be; how many were made."""
    layers = (module for module in model.modules() if isinstance(module, PrepackedLinear))
    found = (memory_of(piece) for layer in layers for piece in layer.packed)
    return use_huge_pages(memory for memory in found if memory is not None)


def prepacked(layer: nn.Module, batch_invariant: bool) -> PrepackedLinear | None:
    """The layer prepacked, or None where it cannot be or does not agree."""
    if type(layer) in transformers_classes("pytorch_utils", "Conv1D"):
        # GPT-2's, which keeps its weight `[in features, out features]`.
        weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
        layer = linear_of(weight.detach().T.contiguous(), bias.detach())
    # Subclasses of nn.Linear do something of their own.
    if type(layer) is not nn.Linear or layer.weight.dtype not in DTYPES:
        return None
    return first_equal(layer, _candidates(layer, batch_invariant), _probe(layer))


def _candidates(layer: nn.Linear, batch_invariant: bool) -> Iterator[PrepackedLinear]:
    size = layer.in_features, layer.out_features
    columns = invariant_columns(*size, layer.weight.dtype) if batch_invariant else None
    yield PrepackedLinear.of(layer, columns)


def _probe(layer: nn.Linear) -> Tensor:
    return probe_rows(PROBE_ROWS, layer.in_features, dtype=layer.weight.dtype)


def norm_options(norm: nn.LayerNorm) -> NormOptions:
    """What it gives `torch.layer_norm`."""
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps


def has_invariant_products(
    model: nn.Module, threads: Sequence[int] = (1,), *, few_rows: bool = False
) -> bool:
    """Whether the products of a model on the CPU are batch-invariant.

    That is: a row has identical bits for every number of rows from 16 on, or with `few_rows` from
    4 on, and on any of these numbers of threads.
    """
    return all(
        is_invariant(
            columns, outputs, dtype, tuple(threads), prepacked=prepacked, few_rows=few_rows
        )
        for columns, outputs, dtype, prepacked in sorted(_products(model), key=str)
    )


def _products(model: nn.Module) -> set[tuple[int, int, torch.dtype, bool]]:
    """Columns, outputs and dtype of what is to be tried for a model, and whether prepacked."""
    found: set[tuple[int, int, torch.dtype, bool]] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | Int8Linear):  # no product, or an exact one
            continue
        for weight in module.parameters(recurse=False):
            if weight.ndim < 2 or weight.dtype not in DTYPES:
                continue
            if isinstance(module, PrepackedLinear):
                sizes = {tried_size(piece.shape[1], piece.shape[0]) for piece in module.packed}
                found |= {(*size, weight.dtype, True) for size in sizes}
            else:
                found.add((*PLAIN_PRODUCT, weight.dtype, False))
    return found
