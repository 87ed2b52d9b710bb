"""`CompiledLayers`: the repeated layers of a model through `torch.compile`, all by one function.

A compiled layer is good for every layer like it and for any number of rows, so compiling takes
seconds and not minutes, and what the compiler kept on disk serves the next start. Attention is
a single operator to it, done by the same code as ever. It proves nothing: that is `selfcheck`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.packed import PackedSequences

__all__ = ["CompiledLayers", "TracedSequences", "compile_with_inductor", "without_global_state"]

logger = logging.getLogger("millpond")


Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class TracedSequences:
    """`PackedSequences` in a form that one compiled function takes whatever is in the batch."""

    groups: Tensor
    """int64 `[3 × groups]` on the CPU, one after the other."""
    boundaries: Tensor | None
    longest: int
    deterministic: bool

    @classmethod
    def of(cls, sequences: PackedSequences) -> TracedSequences:
        groups = torch.tensor(sequences.groups, dtype=torch.int64).flatten()
        return cls(groups, sequences.boundaries, sequences.longest, sequences.deterministic)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        window: int | None,
        causal: bool,
        layer: int | None = None,
    ) -> Tensor:
        """`[heads, total, size]` in, `[total, heads, size]` out."""
        out: Tensor = torch.ops.millpond.attend(
            query,
            key,
            value,
            self.groups,
            self.boundaries,
            self.longest,
            self.deterministic,
            scaling,
            window,
            causal,
        )
        return out


@torch.library.custom_op("millpond::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Tensor,
    boundaries: Tensor | None,
    longest: int,
    deterministic: bool,
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> Tensor:
    runs = tuple((start, count, length) for start, count, length in groups.view(-1, 3).tolist())
    sequences = PackedSequences(runs, longest, boundaries, deterministic)
    out = sequences.attend(query, key, value, scaling=scaling, window=window, causal=causal)
    return out.contiguous()


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    heads, total, _size = query.shape
    return value.new_empty(total, heads, value.shape[-1])


def compile_with_inductor(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for any number of rows, and on a CPU for any number of threads."""
    options: dict[str, Any] = {
        "cpp.dynamic_threads": True,
        "guard_filter_fn": without_global_state,
    }
    return torch.compile(function, dynamic=True, options=options)


def without_global_state(guards: Sequence[Any]) -> list[bool]:
    """Which of a compiler's guards are kept: all but that on torch's global state.

    The thread count is part of it. A CPU's workers change that from batch to batch, and each count
    would be compiled for anew; the rest of it, gradients and autocast, is the same in every batch.
    """
    return [guard.guard_type != "GLOBAL_STATE" for guard in guards]


class CompiledLayers:
    """Stands in for the layers' own forward, for calls with `TracedSequences`; others run plainly.

    Raises `ValueError` where the model has no layers that repeat.
    """

    def __init__(self, model: nn.Module, compiler: Compiler = compile_with_inductor) -> None:
        self._layers = _repeated_layers(model)
        if not self._layers:
            raise ValueError("the model has no layers that repeat")
        self._compiled = compiler(_own_code(_call_layer))
        # Set by whichever forward pass finds that the compiler fails after all.
        self.failed = False
        for layer in self._layers:
            layer.forward = self._forward_of(layer)

    def _forward_of(self, layer: nn.Module) -> Callable[..., Any]:
        plain = layer.forward

        def forward(*inputs: Any, **options: Any) -> Any:
            if self.failed or not isinstance(options.get("packed_sequences"), TracedSequences):
                return plain(*inputs, **options)
            try:
                return self._compiled(layer, *inputs, **options)
            except torch._dynamo.exc.TorchDynamoException as error:
                self._fail(error)
                return plain(*inputs, **options)

        return forward

    def _fail(self, error: Exception) -> None:
        self.failed = True
        first_line = (str(error).splitlines() or [""])[0][:200]
        logger.warning("running without compiled layers: %s", first_line)

    def remove(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)

    def __repr__(self) -> str:
        return f"CompiledLayers(layers={len(self._layers)}, failed={self.failed})"


def _call_layer(layer: nn.Module, *inputs: Any, **options: Any) -> Any:
    return type(layer).forward(layer, *inputs, **options)


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy that the compiler takes for another function: it counts its attempts for each."""
    assert isinstance(function, FunctionType)
    code: CodeType = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__)


def _repeated_layers(model: nn.Module) -> list[nn.Module]:
    """What the outermost lists of modules of one class hold."""
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len({type(layer) for layer in child}) == 1:
            return list(child)
        found = _repeated_layers(child)
        if found:
            return found
    return []
