"""Linear layers for a CPU in int8: each weight's rows and each token have a scale of their own.

A token's numbers are rounded to 253 levels by its largest one, and an output's weights to 255 by
theirs, when the model is loaded. Products of whole numbers are exact, so a token's bits do not
depend on how many others there are. What is between the layers stays in the model's own precision.

Some columns of a layer's input are much larger than the others, in every token, and would leave
these few levels. Where that shows, columns are evened out before, and the weights make up for it:
SmoothQuant (Xiao et al., 2023, equation 4, with an exponent of one half).

torch has the product under a private name, for processors with VNNI or AMX instructions. It is
tried before it is trusted: without VNNI, sums of large products overflow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidOption
from .right_of_way import give_way

__all__ = ["Int8Linear", "has_int8_layers", "quantize_linears", "recorded_inputs"]

MOST = {"weights": 127, "tokens": 126}
"""The largest code. One is kept in hand for tokens: their scale is rounded to bfloat16."""
ZERO = 128  # codes of tokens are shifted by it: the kernels without AMX want them unsigned
SMALLEST = 1e-30  # instead of the largest number of a token that is all zeros
BITS = {torch.float32: (torch.int32, 0x7FFF_FFFF), torch.bfloat16: (torch.int16, 0x7FFF)}
"""The integers as wide as a number, and all bits of one but its sign."""
NOT_HERE = (
    "dtype='int8' needs a CPU with VNNI or AMX instructions (x86) and a torch that uses them; "
    "choose another dtype, or leave it at 'auto'"
)


class Int8Linear(nn.Linear):
    """A linear layer whose weight has only a dtype and a shape; its codes are in `_packed`."""

    _packed: Tensor
    _scales: Tensor  # float32 `[out features]`
    _evening: Tensor | None  # `[in features]`, what inputs are multiplied with first

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
        # Kept out of the module's own bookkeeping: a packed tensor can be neither copied nor saved.
        made.__dict__["_packed"] = _operators().qlinear_prepack(codes, None)
        made.__dict__["_scales"] = scales
        made.__dict__["_evening"] = None if sizes is None else (1 / sizes).to(linear.weight.dtype)
        return made.eval()

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            give_way()
        rows = input.reshape(-1, self.in_features)
        codes, scale = _quantized(rows if self._evening is None else rows * self._evening)
        out = _product(codes, self._packed, self._scales, input.dtype)
        out = out.mul_(scale) if self.bias is None else torch.addcmul(self.bias, out, scale)
        return out.view(*input.shape[:-1], self.out_features)


def _quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 `[n, columns]` around `ZERO`, and what one step is worth, `[n, 1]`."""
    integers, magnitude = BITS[rows.dtype]
    # As integers, numbers without their sign are in the same order, and are compared faster.
    largest = rows.view(integers).bitwise_and(magnitude).amax(-1, keepdim=True).view(rows.dtype)
    steps = MOST["tokens"] / largest.clamp_(min=SMALLEST)
    codes = torch.mul(rows, steps).round_().to(torch.int8)
    return codes.bitwise_xor_(-ZERO).view(torch.uint8), steps.reciprocal()


def _product(codes: Tensor, packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    out = _operators().qlinear_pointwise(
        codes, 1.0, ZERO, packed, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    assert isinstance(out, Tensor)
    return out


def _operators() -> Any:
    return torch.ops.onednn


Inputs = Mapping[nn.Module, Sequence[Tensor]]
"""What went into layers: rows `[n, in features]` of each pass."""


@contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Keep what goes into the linear layers of a model while it runs."""
    inputs: dict[nn.Module, list[Tensor]] = {}

    def record(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        rows = arguments[0]
        inputs.setdefault(layer, []).append(rows.reshape(-1, rows.shape[-1]))

    layers = [module for module in model.modules() if type(module) is nn.Linear]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def quantize_linears(model: nn.Module, inputs: Inputs | None = None) -> int:
    """Replace the linear layers of a model on the CPU; how many is returned.

    By `inputs`, of texts as they come, it is found out which layers are better with their columns
    evened out. Raises `InvalidOption` where the processor or torch cannot do it.
    """
    if not _is_exact():
        raise InvalidOption(NOT_HERE)
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # Subclasses of nn.Linear do something of their own.
            if type(child) is nn.Linear and child.weight.dtype in BITS:
                setattr(parent, name, _best(child, (inputs or {}).get(child, ())))
                replaced += 1
    return replaced


def _best(linear: nn.Linear, passes: Sequence[Tensor]) -> Int8Linear:
    """The closer one, on every other pass, of the plain layer and the one evened by the rest."""
    plain = Int8Linear.of(linear)
    if len(passes) < 2:
        return plain
    rows = torch.cat(tuple(passes[1::2]))
    expected = linear(rows).float()
    evened = Int8Linear.of(linear, _sizes(linear, torch.cat(tuple(passes[::2]))))
    distances = [(layer(rows).float() - expected).norm() for layer in (plain, evened)]
    return evened if distances[1] < distances[0] else plain


def _sizes(linear: nn.Linear, rows: Tensor) -> Tensor:
    """The geometric mean of a column's largest input over its largest weight, by column."""
    inputs, weights = (
        x.detach().float().abs().amax(0).clamp(min=1e-5) for x in (rows, linear.weight)
    )
    sizes = (inputs / weights).sqrt()
    return sizes / sizes.log().mean().exp()


def has_int8_layers(model: nn.Module) -> bool:
    """Whether linear layers of the model run in int8."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


@cache
@torch.no_grad()
def _is_exact() -> bool:
    """Whether the product is there, quick, and exact where sums are as large as they get."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    if not torch.backends.mkldnn.is_available() or not has_vnni():  # type: ignore[no-untyped-call]
        return False
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (17, 192), generator=random) * 255
    weight = torch.randint(0, 2, (32, 192), generator=random) * 254 - 127
    try:
        packed = _operators().qlinear_prepack(weight.to(torch.int8), None)
        found = _product(codes.to(torch.uint8), packed, torch.ones(32), torch.float32)
    except (AttributeError, RuntimeError):  # no such operator, or not for this processor
        return False
    return torch.equal(found.long(), (codes - ZERO) @ weight.t())
