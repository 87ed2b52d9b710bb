"""Linear layers for a CPU: weights laid out once for its matrix kernels, GELU done in them.

`nn.Linear` lays its weight out anew at every call, which is most of the time of a short query.
torch has operators that do it once, but only under private names: they are looked for, each layer
is compared with the one it replaces, and whatever does not agree stays as it was.

A processor with matrix units (Intel's AMX) sums a long bfloat16 product in pieces, whose length
depends on how many rows there are and on how many threads, and so do a row's bits. Without
bfloat16 of its own it is the number of threads alone, in products that are not prepacked. No flag
says so: products are tried. Where one is unsteady, a steady layer is several shorter products.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import activations
from transformers.pytorch_utils import Conv1D

from ...cpu.openmp import limited_threads
from ...cpu.preemption import yield_to_queries
from .int8.linear import Int8Linear

__all__ = [
    "PrepackedLinear",
    "Product",
    "are_close",
    "fuse_gelus",
    "has_steady_products",
    "is_exact_gelu",
    "prepack_linears",
    "prepacked",
]

PROBE_ROWS = 17


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


_EXACT_GELUS = (nn.GELU, activations.GELUActivation)


# Measured with AMX, 1 to 96 threads and 16 to 1100 rows: every product is steady of up to 480
# columns that are a multiple of what a matrix unit takes at once. Some others are, most are not.
MOST_COLUMNS = 480


COLUMNS_AT_ONCE = 32


# What a layer in pieces makes at a time: its tensors for each piece are new memory, and above
# 32 MB the operating system's own, which takes longer to get than the product.
MOST_NUMBERS = 2**23


# With these numbers of rows a product of 512 columns or more shows whether the processor is
# steady; it takes 64 outputs to show it, and more than 512 show no more.
ROW_COUNTS = (16, 48, 256)


FEWEST_COLUMNS_TRIED = 512


OUTPUTS_TRIED = (64, 512)


DISTINCT_ROWS = 61


# Speaks for whatever a model multiplies with besides prepacked layers; in features, out features.
PLAIN_PRODUCT = (1024, 256)


class PrepackedLinear(nn.Linear):
    """A linear layer whose weight has only a dtype and a shape; its numbers are in `_packed`."""

    _packed: tuple[Tensor, ...]  # the weight in pieces that follow each other, most often one
    then = "none"  # what is done to each element on its way out

    @classmethod
    def of(cls, linear: nn.Linear, columns: int | None = None) -> PrepackedLinear:
        """The layer as one product, or as several of so many columns (the last may have fewer)."""
        has_bias = linear.bias is not None
        size = linear.in_features, linear.out_features
        made = cls(*size, bias=has_bias, device="meta", dtype=linear.weight.dtype)
        made.weight.requires_grad_(False)
        made.bias = linear.bias
        weight = linear.weight.detach()
        if columns is not None:
            weight = functional.pad(weight, (0, -linear.in_features % COLUMNS_AT_ONCE))
        pieces = torch.split(weight, columns or linear.in_features, dim=1)
        # Kept out of the module's own bookkeeping: such tensors can be neither copied nor saved.
        made.__dict__["_packed"] = tuple(map(_pack, pieces))
        return made.eval()

    def forward(self, input: Tensor) -> Tensor:
        yield_to_queries()
        return _linear(input, self._packed, self.bias, self.then)

    def product(self) -> Product:
        """What it computes, without the cost of a module's call."""
        whole = len(self._packed) == 1 and self._packed[0].shape[1] == self.in_features
        return Product(self._packed, self.bias, self.then, whole)


@dataclass(frozen=True, slots=True)
class Product:
    """The computation of a prepacked layer."""

    packed: tuple[Tensor, ...]
    bias: Tensor | None
    then: str
    is_whole: bool
    """Whether one call of the kernel does it."""

    def of(self, rows: Tensor) -> Tensor:
        """The product with rows `[n, in features]`."""
        yield_to_queries()
        if not self.is_whole:
            return _linear(rows, self.packed, self.bias, self.then)
        out: Tensor = _operators()._linear_pointwise(
            rows, self.packed[0], self.bias, self.then, [], "none"
        )
        return out

    def added_to(self, others: Tensor, rows: Tensor) -> Tensor:
        """The same and `others`, `[n, out features]`, which are added before the kernel rounds."""
        assert self.then == "none"
        if not self.is_whole:
            return self.of(rows).add_(others)
        yield_to_queries()
        out: Tensor = _operators()._linear_pointwise.binary(
            rows, others, self.packed[0], self.bias, "add"
        )
        return out


def _pack(weight: Tensor) -> Tensor:
    packed = _operators()._reorder_linear_weight(weight.contiguous(), None)
    assert isinstance(packed, Tensor)
    return packed


def _linear(input: Tensor, packed: Sequence[Tensor], bias: Tensor | None, then: str) -> Tensor:
    missing = sum(weight.shape[1] for weight in packed) - input.shape[-1]
    if missing:
        input = functional.pad(input, (0, missing))
    if len(packed) > 1:
        return _linear_in_pieces(input, packed, bias, then)
    out = _operators()._linear_pointwise(input, packed[0], bias, then, [], "none")
    assert isinstance(out, Tensor)
    return out


def _linear_in_pieces(
    input: Tensor, packed: Sequence[Tensor], bias: Tensor | None, then: str
) -> Tensor:
    rows, outputs = input.reshape(-1, input.shape[-1]), packed[0].shape[0]
    parts = -(-len(rows) * outputs // MOST_NUMBERS)
    if parts <= 1:
        return _sum_of_pieces(input, packed, bias, then)
    out = input.new_empty(*input.shape[:-1], outputs)
    places = torch.tensor_split(out.view(-1, outputs), parts)
    for part, place in zip(torch.tensor_split(rows, parts), places, strict=True):
        place.copy_(_sum_of_pieces(part, packed, bias, then))
    return out


def _sum_of_pieces(
    input: Tensor, packed: Sequence[Tensor], bias: Tensor | None, then: str
) -> Tensor:
    widths = [weight.shape[1] for weight in packed]
    if len(set(widths)) == 1:  # the kernel wants each piece's rows together: one copy for all
        parted = input.reshape(*input.shape[:-1], len(packed), -1)
        pieces = parted.movedim(-2, 0).contiguous().unbind()
    else:
        pieces = torch.split(input, widths, dim=-1)
    out = _linear(pieces[0], packed[:1], bias, "none")
    for piece, weight in zip(pieces[1:], packed[1:], strict=True):
        # Added before the kernel rounds: one rounding for each piece, not two.
        out = _operators()._linear_pointwise.binary(piece, out, weight, None, "add")
    return torch.ops.aten.gelu_(out) if then == "gelu" else out


def _operators() -> Any:
    return torch.ops.mkldnn


@torch.no_grad()
def prepack_linears(
    model: nn.Module, *, steady: bool = False, keep: Container[nn.Module] = ()
) -> int:
    """Replace the linear layers of a model on the CPU but those to `keep`; how many is returned.

    With `steady` they give a row the same bits beside any number of others, wherever they can.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            packed = None if child in keep else prepacked(child, steady)
            if packed is not None:
                setattr(parent, name, packed)
                replaced += 1
    return replaced


@torch.no_grad()
def fuse_gelus(model: nn.Module) -> int:
    """Let prepacked layers do the exact GELU that follows them; how many is returned.

    Which layer an activation follows is in the code of their parent, so only a parent that has
    these two and nothing else is looked at, and it has to give what it gave before.
    """
    return sum(_fused(parent) for parent in model.modules())


def _fused(parent: nn.Module) -> bool:
    children = dict(parent.named_children())
    linears = [c for c in children.values() if type(c) is PrepackedLinear and c.then == "none"]
    gelus = [name for name, child in children.items() if is_exact_gelu(child)]
    if len(children) != 2 or len(linears) != 1 or len(gelus) != 1:
        return False
    (linear,), (name,) = linears, gelus
    try:
        rows = _probe(linear)
        expected = parent(rows)
        linear.then = "gelu"
        setattr(parent, name, nn.Identity())
        agrees = are_close(parent(rows), expected)
    except Exception:  # whatever a parent that is called otherwise, or a kernel, objects with
        agrees = False
    if not agrees:
        linear.then = "none"
        setattr(parent, name, children[name])
    return agrees


def is_exact_gelu(module: nn.Module) -> bool:
    # Subclasses do something of their own.
    return type(module) in _EXACT_GELUS and getattr(module, "approximate", "none") == "none"


def prepacked(layer: nn.Module, steady: bool) -> PrepackedLinear | None:
    """The layer prepacked, or None where it cannot be or does not agree."""
    if type(layer) is Conv1D:
        layer = _transposed(layer)
    # Subclasses of nn.Linear do something of their own.
    if type(layer) is not nn.Linear or layer.weight.dtype not in TOLERANCE:
        return None
    try:
        packed = PrepackedLinear.of(layer, _steady_columns(layer) if steady else None)
        agrees = _agree(layer, packed)
    except (AttributeError, RuntimeError):  # no such operator, or not for this processor
        return None
    return packed if agrees else None


def _transposed(layer: Conv1D) -> nn.Linear:
    """GPT-2's linear layer, which keeps its weight `[in features, out features]`, as any other."""
    made = nn.Linear(layer.nx, layer.nf, device="meta")
    made.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
    made.bias = layer.bias
    return made


def _steady_columns(layer: nn.Linear) -> int | None:
    """Columns of each piece of a layer that is not steady as it is; None for one that is."""
    columns, dtype = layer.in_features, layer.weight.dtype
    if dtype != torch.bfloat16 or _is_steady(*_tried(columns, layer.out_features), dtype):
        return None
    pieces = -(-columns // MOST_COLUMNS)
    return _whole_units(-(-columns // pieces))


def _whole_units(columns: int) -> int:
    return -(-columns // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE


def _tried(columns: int, outputs: int) -> tuple[int, int]:
    """Columns and outputs of the product that is tried for one of these."""
    if columns > MOST_COLUMNS or columns % COLUMNS_AT_ONCE:
        columns = max(FEWEST_COLUMNS_TRIED, _whole_units(columns))
    fewest, most = OUTPUTS_TRIED
    return columns, min(max(outputs, fewest), most)


@torch.no_grad()
def has_steady_products(model: nn.Module, threads: Sequence[int] = (1,)) -> bool:
    """Whether the products of a model on the CPU give a row the same bits in any company.

    That is from 16 rows on, and on any of these numbers of threads.
    """
    return all(
        _is_steady(columns, outputs, dtype, tuple(threads), prepacked=prepacked)
        for columns, outputs, dtype, prepacked in sorted(_products(model), key=str)
    )


def _products(model: nn.Module) -> set[tuple[int, int, torch.dtype, bool]]:
    """Columns, outputs and dtype of what is to be tried for a model, and whether prepacked."""
    found: set[tuple[int, int, torch.dtype, bool]] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | Int8Linear):  # no product, or an exact one
            continue
        for weight in module.parameters(recurse=False):
            if weight.ndim < 2 or weight.dtype not in TOLERANCE:
                continue
            if isinstance(module, PrepackedLinear):
                sizes = {_tried(piece.shape[1], piece.shape[0]) for piece in module._packed}
                found |= {(*size, weight.dtype, True) for size in sizes}
            else:
                found.add((*PLAIN_PRODUCT, weight.dtype, False))
    return found


@cache  # what is found is the processor's, and the same for every model
def _is_steady(
    columns: int,
    outputs: int,
    dtype: torch.dtype,
    threads: tuple[int, ...] = (1,),
    *,
    prepacked: bool = True,
) -> bool:
    """Whether a product gives a row the same bits for several numbers of rows and threads.

    Every sum is one of pairs that cancel, in a mixed order, so what is left of it is rounding:
    summed in another order, most elements differ.
    """
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(-(-columns // 2) * 2, generator=random)[:columns]

    def cancelling(count: int, sign: int) -> Tensor:
        half = torch.randn(DISTINCT_ROWS, -(-columns // 2), generator=random)
        rows = torch.cat([half, sign * half], dim=1)[:, order].to(dtype)
        return rows.repeat(-(-count // DISTINCT_ROWS), 1)[:count]

    multiply = _multiplier(cancelling(outputs, -1), prepacked)
    rows = cancelling(max(ROW_COUNTS), 1)
    found = []
    for threads_here in threads:
        with limited_threads(threads_here):
            found += [multiply(rows[:count]) for count in ROW_COUNTS]
    return all(torch.equal(each, found[-1][: len(each)]) for each in found)


def _multiplier(weight: Tensor, prepacked: bool) -> Callable[[Tensor], Tensor]:
    if not prepacked:
        return lambda rows: functional.linear(rows, weight)
    packed = (_pack(weight),)
    return lambda rows: _linear(rows, packed, None, "none")


def _agree(layer: nn.Linear, packed: nn.Module) -> bool:
    rows = _probe(layer)
    return are_close(packed(rows), layer(rows))


def _probe(layer: nn.Linear) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(PROBE_ROWS, layer.in_features, generator=generator)
    return rows.to(layer.weight.dtype)


def are_close(found: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Whether they differ by no more than rounding in their dtype, or a tolerance, explains."""
    distance = (found.float() - expected.float()).norm()
    return bool(distance <= (tolerance or TOLERANCE[expected.dtype]) * expected.float().norm())
