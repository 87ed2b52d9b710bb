"""Rotary embeddings that depend on the longest text they are given: which models have one.

Two kinds do: `longrope` takes other frequencies beyond a length, and `dynamic` ones that go with
the length and stay until a short text comes. So what a text gets would depend on the other texts of
its batch, and with `dynamic` on the texts before it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["RotaryState", "rotates_by_length"]


def rotates_by_length(model: nn.Module) -> bool:
    """Whether a text's positions may be rotated otherwise beside a longer text."""
    return any(_kind(module, "dynamic") or _kind(module, "longrope") for module in model.modules())


def _kind(module: nn.Module, name: str) -> bool:
    """Some models name one kind of rotary embedding, and some a kind for every type of layer."""
    return name in str(getattr(module, "rope_type", ""))


class RotaryState:
    """The state in which a model's `dynamic` rotary embeddings were loaded.

    Restored before each forward pass, they give a text what they give it alone and at first.
    """

    def __init__(self, model: nn.Module) -> None:
        found = (module for module in model.modules() if _kind(module, "dynamic"))
        self._states = [(module, _state(module)) for module in found]

    def restore(self) -> None:
        """Forget the lengths that were seen."""
        for module, state in self._states:
            for name, value in state.items():
                setattr(module, name, value)

    def __repr__(self) -> str:
        return f"RotaryState(embeddings={len(self._states)})"


def _state(module: nn.Module) -> dict[str, Any]:
    """What transformers replaces when a longer text comes, for every type of layer there is."""
    state: dict[str, Any] = dict(module.named_buffers())
    longest = getattr(module, "max_seq_len_cached", None)
    if longest is None:
        return state
    kinds: Any = module.rope_type
    layer_types = kinds if isinstance(kinds, dict) else ()
    names = ("", *(f"{layer_type}_" for layer_type in layer_types))
    return state | {f"{name}max_seq_len_cached": longest for name in names}
