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

from ....cpu.compiled import as_array, kernels
from ....cpu.preemption import yield_to_queries
from ....errors import InvalidOption

__all__ = ["QMAX", "SMALLEST", "Int8Norm", "Int8Product", "check_int8"]

QMAX = 127
"""The largest quantised value."""
ZERO = 128  # values of tokens are shifted by it for torch's product, which wants them unsigned
SMALLEST = 1e-30  # instead of the largest number of an output that is all zeros
NOT_INSTALLED = (
    "dtype='int8' needs Numba, which compiles its kernels: pip install \"millpond[cpu]\" "
    "({reason}); or leave dtype at 'auto'"
)
NOT_HERE = (
    "dtype='int8' needs a CPU with VNNI or AMX instructions (x86) and a torch that uses them; "
    "choose another dtype, or leave it at 'auto'"
)
Array = npt.NDArray[np.float32]


class QuantizedRows(NamedTuple):
    """Rows in int8, each with its own scale."""

    values: Tensor
    """Uint8 `[n, columns]`; for tiles there are rows besides, up to a whole block of them."""
    scales: Array
    """What one whole number of a row is worth, `[n]`."""


@dataclass(frozen=True, slots=True)
class Int8Product:
    """The computation of a layer: rows times its weight, and its bias."""

    packed: Tensor
    """The quantised weight as tiles, or as torch's product takes it."""
    output_scales: Tensor
    """What one whole number of an output's weights is worth, float32 `[outputs]`."""
    bias: Tensor
    """Float32 `[outputs]`."""
    smoothing: Tensor
    """What columns are multiplied with first, float32 `[columns]`."""

    @classmethod
    def of_quantized(
        cls, weight: Tensor, output_scales: Tensor, bias: Tensor, smoothing: Tensor
    ) -> Int8Product:
        """Of a quantised weight, int8 `[outputs, columns]`."""
        compiled = kernels()
        outputs, columns = weight.shape
        whole = columns % compiled.COLUMNS_AT_ONCE == outputs % compiled.OUTPUTS_AT_ONCE == 0
        if whole and compiled.has_tiles():
            packed = torch.empty(weight.numel(), dtype=torch.int8)  # at a cache line
            tiles = torch.from_numpy(compiled.in_tiles(weight.numpy()))
            packed = packed.view(tiles.shape).copy_(tiles)
        else:
            packed = _operators().qlinear_prepack(weight, None)
        return cls(packed, output_scales, bias, smoothing)

    def of(self, rows: Tensor) -> Tensor:
        """Outputs `[n, outputs]` of rows `[n, columns]`, in their dtype."""
        out = rows.new_empty(len(rows), len(self.output_scales))
        source = self._source(quantized := self._quantized(rows))
        kernels().dequantize(source, quantized.scales, *self._shape(), as_array(out))
        return out

    def gelu_of(self, rows: Tensor, following: Int8Product) -> QuantizedRows:
        """The exact GELU of the outputs, quantised as the product that follows takes them."""
        source = self._source(quantized := self._quantized(rows))
        found = following._empty(len(rows))
        kernels().gelu_and_quantize(
            source,
            quantized.scales,
            *self._shape(),
            *(following.smoothing.numpy(), following._zero, found.values.numpy(), found.scales),
        )
        return found

    def norm_of_sum(self, rows: Tensor | QuantizedRows, residual: Tensor, norm: Int8Norm) -> Tensor:
        """Layer norm of the outputs and the residual `[n, outputs]`, in the residual's dtype."""
        residual = residual.contiguous()
        out = torch.empty_like(residual)
        quantized = rows if isinstance(rows, QuantizedRows) else self._quantized(rows)
        kernels().add_and_norm(
            self._source(quantized),
            quantized.scales,
            *self._shape(),
            *(as_array(residual), norm.weight.numpy(), norm.shift.numpy(), norm.epsilon),
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
        return self.output_scales.numpy(), self.bias.numpy()

    def _empty(self, count: int) -> QuantizedRows:
        rows = count
        if self._is_tiled:
            rows = -(-count // kernels().ROWS_AT_ONCE) * kernels().ROWS_AT_ONCE
        values = torch.empty(rows, len(self.smoothing), dtype=torch.uint8)
        return QuantizedRows(values, np.empty(count, np.float32))

    def _quantized(self, rows: Tensor) -> QuantizedRows:
        found = self._empty(len(rows))
        taken = as_array(rows.contiguous()), self.smoothing.numpy()
        kernels().quantize(*taken, self._zero, found.values.numpy(), found.scales)
        return found

    def _source(self, quantized: QuantizedRows) -> Any:
        """Sums of whole numbers, or what is needed to compute them block by block."""
        yield_to_queries()
        if not self._is_tiled:
            return _sums(quantized.values, self.packed, len(self.output_scales)).numpy()
        compiled = kernels()
        # Rows that are a power of two apart would share few lines of the cache.
        sums = torch.empty(compiled.ROWS_AT_ONCE, len(self.output_scales) + 16, dtype=torch.int32)
        return compiled.Tiles(
            quantized.values.numpy(), self.packed.numpy(), sums.numpy(), compiled.PALETTE
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


def _sums(values: Tensor, packed: Tensor, outputs: int) -> Tensor:
    """Sums of whole numbers, float32 `[n, outputs]`, by torch."""
    ones, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    out = _operators().qlinear_pointwise(
        values, 1.0, ZERO, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    assert isinstance(out, Tensor)
    return out


def _operators() -> Any:
    return torch.ops.onednn


def check_int8() -> None:
    """Raise `InvalidOption`, saying what to do, where layers cannot run in int8."""
    try:
        kernels()
    except ImportError as error:
        raise InvalidOption(NOT_INSTALLED.format(reason=error)) from error
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
    rows[:, 0] = 127  # so that elements are their own quantised values
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
    scales, bias, smoothing = ones[:outputs], torch.zeros(outputs), ones[:columns]
    product = Int8Product.of_quantized(weight.to(torch.int8), scales, bias, smoothing)
    return product.of(rows.float())
