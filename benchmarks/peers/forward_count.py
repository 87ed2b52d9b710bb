"""Counts the padding of any library that runs a `SentenceTransformer` inside."""

from __future__ import annotations

from typing import Any


class ForwardCount:
    """Real and computed tokens of every forward pass of one model, from its attention masks."""

    def __init__(self, model: Any) -> None:
        self.tokens = (0, 0)
        model.register_forward_pre_hook(self._add)

    def _add(self, module: object, arguments: tuple[Any, ...]) -> None:
        mask = arguments[0]["attention_mask"]
        real, computed = self.tokens
        self.tokens = (real + int(mask.sum()), computed + mask.numel())

    def __repr__(self) -> str:
        return f"ForwardCount(tokens={self.tokens[0]}, computed={self.tokens[1]})"
