"""How a model's layers attend, by the name that its implementation is set to.

A model of transformers looks a name up in transformers' table, ours in the one here. Nothing here
imports transformers: before it is imported, no model asks for a name of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .packed import ATTENTION_NAME, packed_attention

__all__ = ["STOCK_NAME", "attention_function", "register_attention"]

STOCK_NAME = "torch"


def register_attention() -> None:
    """Make `ATTENTION_NAME` known to transformers, once it is imported. Again changes nothing.

    It has no mask function, and without one transformers makes no mask. With one it would look for
    packed sequences in the positions of every batch first, and wait for a GPU to do it.
    """
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is not None:
        modeling.AttentionInterface.register(ATTENTION_NAME, packed_attention)


def attention_function(name: str) -> Callable[..., tuple[Tensor, Any]]:
    """What a model that is set to `name` attends by. Raises `KeyError` for an unknown one."""
    ours = _OURS.get(name)
    if ours is not None:
        return ours
    modeling: Any = sys.modules["transformers.modeling_utils"]
    function: Callable[..., tuple[Tensor, Any]] = modeling.ALL_ATTENTION_FUNCTIONS[name]
    return function


def stock_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
) -> tuple[Tensor, None]:
    """torch's attention in both directions: `[n, heads, length, size]` in, heads third out."""
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling
    )
    return attended.transpose(1, 2), None


_OURS: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    ATTENTION_NAME: packed_attention,
    STOCK_NAME: stock_attention,
}
