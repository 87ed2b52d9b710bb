"""Linear layers for a CPU in int8: each weight's rows and each token have a scale of their own.

A token's numbers are rounded to 255 levels by its largest one, and an output's weights likewise by
theirs, when the model is loaded. Products of whole numbers are exact, so a token's bits do not
depend on how many others there are. What is between the layers stays in the model's own precision.

Some columns of a layer's input are much larger than the others, in every token, and would leave
these few levels. Where that shows, columns are evened out before, and the weights make up for it:
SmoothQuant (Xiao et al., 2023, equation 4, with an exponent of one half).

With matrix units the product is `kernels`' own. Elsewhere, and where sizes are not whole
tiles, it is torch's, which has it under a private name for processors with VNNI instructions. Both
are tried before they are trusted: without VNNI, sums of large products overflow.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ....cpu.preemption import yield_to_queries
from ....errors import InvalidOption

__all__ = ["Int8Layer", "Int8Linear", "Int8Norm", "check_int8", "has_int8_layers"]

MOST = {"weights": 127}
"""The largest code."""


DTYPES = (torch.float32, torch.bfloat16)  # of what is between the layers


ZERO = 128  # codes of tokens are shifted by it for torch's product, which wants them unsigned


SMALLEST = 1e-30  # instead of the largest number of an output that is all zeros


NOT_HERE = (
    "dtype='int8' needs a CPU with VNNI or AMX instructions (x86) and a torch that uses them; "
    "choose another dtype, or leave it at 'auto'"
)


NOT_INSTALLED = (
    "dtype='int8' needs Numba, which compiles its kernels: pip install \"millpond[int8]\" "
    "({reason}); or leave dtype at 'auto'"
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
        kernels = _kernels()
        outputs, columns = codes.shape
        whole = columns % kernels.COLUMNS_AT_ONCE == outputs % kernels.OUTPUTS_AT_ONCE == 0
        if whole and kernels.has_tiles():
            packed = torch.empty(codes.numel(), dtype=torch.int8)  # at a cache line
            tiles = torch.from_numpy(kernels.in_tiles(codes.numpy()))
            packed = packed.view(tiles.shape).copy_(tiles)
        else:
            packed = _operators().qlinear_prepack(codes, None)
        return cls(packed, scales, bias, evening)

    def of(self, rows: Tensor) -> Tensor:
        """Outputs `[n, outputs]` of rows `[n, columns]`, in their dtype."""
        out = rows.new_empty(len(rows), len(self.scales))
        source = self._source(rounded := self._rounded(rows))
        _kernels().dequantize(source, rounded.steps, *self._shape(), _numbers(out))
        return out

    def gelu_of(self, rows: Tensor, taker: Int8Product) -> Rounded:
        """The exact GELU of the outputs, rounded as the layer that takes it wants them."""
        source = self._source(rounded := self._rounded(rows))
        found = taker._room(len(rows))
        _kernels().gelu_and_quantize(
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
        _kernels().add_and_norm(
            self._source(rounded),
            rounded.steps,
            *self._shape(),
            *(_numbers(others), norm.weight.numpy(), norm.shift.numpy(), norm.epsilon),
            _numbers(out),
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
            rows = -(-count // _kernels().ROWS_AT_ONCE) * _kernels().ROWS_AT_ONCE
        codes = torch.empty(rows, len(self.evening), dtype=torch.uint8)
        return Rounded(codes, np.empty(count, np.float32))

    def _rounded(self, rows: Tensor) -> Rounded:
        found = self._room(len(rows))
        numbers = _numbers(rows.contiguous()), self.evening.numpy()
        _kernels().quantize(*numbers, self._zero, found.codes.numpy(), found.steps)
        return found

    def _source(self, rounded: Rounded) -> Any:
        """Sums of whole numbers, or what is needed to compute them block by block."""
        yield_to_queries()
        if not self._is_tiled:
            return _sums(rounded.codes, self.packed, len(self.scales)).numpy()
        kernels = _kernels()
        # Rows that are a power of two apart would share few lines of the cache.
        room = torch.empty(kernels.ROWS_AT_ONCE, len(self.scales) + 16, dtype=torch.int32)
        return kernels.Tiles(
            rounded.codes.numpy(), self.packed.numpy(), room.numpy(), kernels.PALETTE
        )


class Int8Linear(nn.Linear):
    """A linear layer whose weight has only a dtype and a shape; its codes are in `_product`."""

    _product: Int8Product

    @classmethod
    def of(cls, linear: nn.Linear, sizes: Tensor | None = None) -> Int8Linear:
        """With `sizes`, float32 `[in features]`, columns are divided by them, and weights not."""
        has_bias = linear.bias is not None
        size = linear.in_features, linear.out_features
        made = cls(*size, bias=has_bias, device="meta", dtype=linear.weight.dtype)
        made.weight.requires_grad_(False)
        made.bias = linear.bias
        weight = linear.weight.detach().float()
        if sizes is not None:
            weight = weight * sizes
        scales = weight.abs().amax(1).clamp(min=SMALLEST) / MOST["weights"]
        codes = (weight / scales[:, None]).round().to(torch.int8)
        bias = linear.bias.detach().float() if has_bias else torch.zeros(size[1])
        evening = torch.ones(size[0]) if sizes is None else 1 / sizes
        # Kept out of the module's own bookkeeping: a packed tensor can be neither copied nor saved.
        made.__dict__["_product"] = Int8Product.of_codes(codes, scales, bias, evening)
        return made.eval()

    def forward(self, input: Tensor) -> Tensor:
        out = self._product.of(input.reshape(-1, self.in_features))
        return out.view(*input.shape[:-1], self.out_features)

    def product(self) -> Int8Product:
        """What it computes, without the cost of a module's call."""
        return self._product


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


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """What an encoder layer of BERT's kind does besides attending."""

    joined: Int8Product
    out: Int8Product
    norm: Int8Norm
    up: Int8Product
    down: Int8Product
    last_norm: Int8Norm

    def project(self, rows: Tensor) -> Tensor:
        """Query, key and value of every row."""
        return self.joined.of(rows)

    def merge(self, attended: Tensor, rows: Tensor) -> Tensor:
        """What rows are after attending."""
        return self.out.norm_of_sum(attended, rows, self.norm)

    def feed_forward(self, rows: Tensor) -> Tensor:
        return self.down.norm_of_sum(self.up.gelu_of(rows, self.down), rows, self.last_norm)


def _numbers(rows: Tensor) -> npt.NDArray[Any]:
    """The memory of rows as kernels take it."""
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


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


@cache
def _kernels() -> ModuleType:
    try:
        return importlib.import_module(".kernels", __package__)
    except ImportError as error:  # Numba, which takes a while to import
        raise InvalidOption(NOT_INSTALLED.format(reason=error)) from error


def has_int8_layers(model: nn.Module) -> bool:
    """Whether linear layers of the model run in int8."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def check_int8() -> None:
    """Raise `InvalidOption`, saying what to do, where layers cannot run in int8."""
    _kernels()
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
