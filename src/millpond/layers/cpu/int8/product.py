"""Products in int8 on a CPU: each weight's rows and each token have a scale of their own.

A token's numbers are rounded to 255 levels by its largest one, and an output's weights likewise by
theirs, when the model is loaded. Products of whole numbers are exact, so a token's bits do not
depend on how many others there are. What is between the layers stays in the model's own precision.

With matrix units the product is one of `kernels`. Elsewhere, and where sizes are not whole tiles,
it is torch's, which has it under a private name for processors with VNNI instructions. Both are
tried before they are trusted: without VNNI, sums of large products overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ....cpu.preemption import yield_to_queries
from ....errors import InvalidOption
from .compiled import as_array, kernels

__all__ = ["QMAX", "SMALLEST", "Int8Norm", "Int8Product", "check_int8"]

QMAX = 127
"""The largest code."""
ZERO = 128  # codes of tokens are shifted by it for torch's product, which wants them unsigned
SMALLEST = 1e-30  # instead of the largest number of an output that is all zeros
NOT_HERE = (
    "dtype='int8' needs a CPU with VNNI or AMX instructions (x86) and a torch that uses them; "
    "choose another dtype, or leave it at 'auto'"
)
Array = npt.NDArray[np.float32]


class Rounded(NamedTuple):
    """Rows as whole numbers."""

    codes: Tensor
    """Uint8 `[n, columns]`; for tiles there are rows besides, up to a whole block of them."""
    steps: Array
    """What one step of a row is worth, `[n]`."""


@dataclass(frozen=True, slots=True)
class Int8Product:
    """The computation of a layer: rows times its weight, and its bias."""

    packed: Tensor
    """The weight's codes as tiles, or as torch's product takes them."""
    scales: Tensor
    """What one step of an output's weights is worth, float32 `[outputs]`."""
    bias: Tensor
    """Float32 `[outputs]`."""
    evening: Tensor
    """What columns are multiplied with first, float32 `[columns]`."""

    @classmethod
    def of_codes(cls, codes: Tensor, scales: Tensor, bias: Tensor, evening: Tensor) -> Int8Product:
        """Of a weight's codes, int8 `[outputs, columns]`."""
        compiled = kernels()
        outputs, columns = codes.shape
        whole = columns % compiled.COLUMNS_AT_ONCE == outputs % compiled.OUTPUTS_AT_ONCE == 0
        if whole and compiled.has_tiles():
            packed = torch.empty(codes.numel(), dtype=torch.int8)  # at a cache line
            tiles = torch.from_numpy(compiled.in_tiles(codes.numpy()))
            packed = packed.view(tiles.shape).copy_(tiles)
        else:
            packed = _operators().qlinear_prepack(codes, None)
        return cls(packed, scales, bias, evening)

    def of(self, rows: Tensor) -> Tensor:
        """Outputs `[n, outputs]` of rows `[n, columns]`, in their dtype."""
        out = rows.new_empty(len(rows), len(self.scales))
        source = self._source(rounded := self._rounded(rows))
        kernels().dequantize(source, rounded.steps, *self._shape(), as_array(out))
        return out

    def gelu_of(self, rows: Tensor, taker: Int8Product) -> Rounded:
        """The exact GELU of the outputs, rounded as the layer that takes it wants them."""
        source = self._source(rounded := self._rounded(rows))
        found = taker._room(len(rows))
        kernels().gelu_and_quantize(
            source,
            rounded.steps,
            *self._shape(),
            *(taker.evening.numpy(), taker._zero, found.codes.numpy(), found.steps),
        )
        return found

    def norm_of_sum(self, rows: Tensor | Rounded, others: Tensor, norm: Int8Norm) -> Tensor:
        """Layer norm of the outputs and of other rows, `[n, outputs]`, in the dtype of those."""
        others = others.contiguous()
        out = torch.empty_like(others)
        rounded = rows if isinstance(rows, Rounded) else self._rounded(rows)
        kernels().add_and_norm(
            self._source(rounded),
            rounded.steps,
            *self._shape(),
            *(as_array(others), norm.weight.numpy(), norm.shift.numpy(), norm.epsilon),
            as_array(out),
        )
        return out

    @property
    def _is_tiled(self) -> bool:
        return self.packed.ndim == 3

    @property
    def _zero(self) -> np.float32:
        return np.float32(0 if self._is_tiled else ZERO)

    def _shape(self) -> tuple[Array, Array]:
        return self.scales.numpy(), self.bias.numpy()

    def _room(self, count: int) -> Rounded:
        rows = count
        if self._is_tiled:
            rows = -(-count // kernels().ROWS_AT_ONCE) * kernels().ROWS_AT_ONCE
        codes = torch.empty(rows, len(self.evening), dtype=torch.uint8)
        return Rounded(codes, np.empty(count, np.float32))

    def _rounded(self, rows: Tensor) -> Rounded:
        found = self._room(len(rows))
        numbers = as_array(rows.contiguous()), self.evening.numpy()
        kernels().quantize(*numbers, self._zero, found.codes.numpy(), found.steps)
        return found

    def _source(self, rounded: Rounded) -> Any:
        """Sums of whole numbers, or what is needed to compute them block by block."""
        yield_to_queries()
        if not self._is_tiled:
            return _sums(rounded.codes, self.packed, len(self.scales)).numpy()
        compiled = kernels()
        # Rows that are a power of two apart would share few lines of the cache.
        room = torch.empty(compiled.ROWS_AT_ONCE, len(self.scales) + 16, dtype=torch.int32)
        return compiled.Tiles(
            rounded.codes.numpy(), self.packed.numpy(), room.numpy(), compiled.PALETTE
        )


@dataclass(frozen=True, slots=True)
class Int8Norm:
    """Layer norm over the last dimension."""

    weight: Tensor
    """Float32 `[width]`, as is `shift`."""
    shift: Tensor
    epsilon: np.float32

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> Int8Norm:
        width = norm.normalized_shape[-1]
        weight = torch.ones(width) if norm.weight is None else norm.weight.detach().float()
        shift = torch.zeros(width) if norm.bias is None else norm.bias.detach().float()
        return cls(weight, shift, np.float32(norm.eps))


def _sums(codes: Tensor, packed: Tensor, outputs: int) -> Tensor:
    """Sums of whole numbers, float32 `[n, outputs]`, by torch."""
    ones, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    out = _operators().qlinear_pointwise(
        codes, 1.0, ZERO, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    assert isinstance(out, Tensor)
    return out


def _operators() -> Any:
    return torch.ops.onednn


def check_int8() -> None:
    """Raise `InvalidOption`, saying what to do, where layers cannot run in int8."""
    kernels()
    if not _is_exact():
        raise InvalidOption(NOT_HERE)


@cache
@torch.no_grad()
def _is_exact() -> bool:
    """Whether products are there, quick, and exact where sums are as large as they get."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    if not torch.backends.mkldnn.is_available() or not has_vnni():  # type: ignore[no-untyped-call]
        return False
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 2, (17, 192), generator=random) * 254 - 127
    rows[:, 0] = 127  # so that numbers are codes, too
    weight = torch.randint(0, 2, (48, 192), generator=random) * 254 - 127
    expected = (rows @ weight.t()).float()
    try:
        # 48 outputs are torch's to compute, 32 may be in tiles.
        return all(torch.equal(_tried(rows, weight[:n]), expected[:, :n]) for n in (48, 32))
    except (AttributeError, RuntimeError):  # no such operator, or not for this processor
        return False


def _tried(rows: Tensor, weight: Tensor) -> Tensor:
    ones = torch.ones(max(weight.shape))
    outputs, columns = weight.shape
    scales, bias, evening = ones[:outputs], torch.zeros(outputs), ones[:columns]
    product = Int8Product.of_codes(weight.to(torch.int8), scales, bias, evening)
    return product.of(rows.float())
