"""Whether token ids that a client sent look like the model's own.

A client with another model's tokenizer would get vectors without meaning and never know. What
gives it away are the special tokens: a model's own tokenizer puts them around every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.engine import Engine
from .errors import FOREIGN_IDS_HINT, ApiError

__all__ = ["SpecialEnds"]

_PROBES = ("hello", "a", "1")


@dataclass(frozen=True)
class SpecialEnds:
    """The special tokens that a model's tokenizer puts before and after a text."""

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()

    @classmethod
    def of(cls, engine: Engine) -> SpecialEnds:
        """As a few texts show them; none where the tokenizer adds none."""
        whole = engine.tokenize(_PROBES, prompt="")
        bare = engine.tokenize(_PROBES, prompt="", special_tokens=False)
        for ids, own in zip(whole, bare, strict=True):
            for start in range(len(ids) - len(own) + 1):
                if own and ids[start : start + len(own)] == own:
                    return cls(tuple(ids[:start]), tuple(ids[start + len(own) :]))
        return cls()

    def hold(self, ids: Sequence[int]) -> bool:
        """Whether a text's ids have them."""
        first, last = len(self.first), len(self.last)
        return (
            len(ids) >= first + last
            and tuple(ids[:first]) == self.first
            and tuple(ids[len(ids) - last :]) == self.last
        )

    def require(self, texts: Sequence[Sequence[int]]) -> None:
        """Refuse ids that lack them. Raises `ApiError` 400 that names the item."""
        for index, ids in enumerate(texts):
            if not self.hold(ids):
                raise ApiError(
                    400,
                    f"input[{index}]: these token ids are not from this model's tokenizer, which "
                    f"{self._described()}. {FOREIGN_IDS_HINT}. A server started with "
                    "--allow-raw-token-ids takes any ids",
                    param="input",
                    code="invalid_token_ids",
                )

    def _described(self) -> str:
        parts = [
            f"{verb} every text with {', '.join(map(str, ids))}"
            for verb, ids in (("begins", self.first), ("ends", self.last))
            if ids
        ]
        return " and ".join(parts)
