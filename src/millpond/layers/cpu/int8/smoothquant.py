"""Which linear layers run in int8, with what smoothing: SmoothQuant.

Some columns of a layer's input are much larger than the others, in every token, and would leave
the others few levels. Where that shows, columns are smoothed: divided by factors that the weights
are multiplied with (Xiao et al., 2023, equation 4, with an exponent of one half).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...replace import replace_children
from .linear import DTYPES, Int8Linear
from .product import check_int8

__all__ = ["Inputs", "in_int8", "quantize_linears", "recorded_inputs"]

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


def quantize_linears(
    model: nn.Module, inputs: Inputs | None = None, *, keep: Container[nn.Module] = ()
) -> int:
    """Replace the linear layers of a model on the CPU but those to `keep`; how many is returned.

    By `inputs`, of texts as they come, it is found out which layers are better with smoothing.
    Raises `InvalidOption` where the processor or torch cannot do it.
    """
    check_int8()

    def replacement(layer: nn.Module) -> Int8Linear | None:
        # Subclasses of nn.Linear do something of their own.
        if type(layer) is not nn.Linear or layer.weight.dtype not in DTYPES:
            return None
        return in_int8(layer, (inputs or {}).get(layer, ()))

    return replace_children(model, replacement, keep=keep)


def in_int8(linear: nn.Linear, passes: Sequence[Tensor]) -> Int8Linear:
    """The closer one, on every other pass, of the plain layer and the one smoothed by the rest."""
    plain = Int8Linear.of(linear)
    if len(passes) < 2:
        return plain
    rows = torch.cat(tuple(passes[1::2]))
    expected = linear(rows).float()
    smoothed = Int8Linear.of(linear, _smoothing_factors(linear, torch.cat(tuple(passes[::2]))))
    distances = [(layer(rows).float() - expected).norm() for layer in (plain, smoothed)]
    return smoothed if distances[1] < distances[0] else plain


def _smoothing_factors(linear: nn.Linear, rows: Tensor) -> Tensor:
    """The geometric mean of a column's largest input over its largest weight, by column."""
    inputs, weights = (
        x.detach().float().abs().amax(0).clamp(min=1e-5) for x in (rows, linear.weight)
    )
    factors = (inputs / weights).sqrt()
    return factors / factors.log().mean().exp()
