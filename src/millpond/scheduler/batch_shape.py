"""`BatchShape`: how the texts of one route stand in a batch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatchShape"]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How the texts of one route stand in a batch.

    `pad_to=None` packs them end to end. Otherwise all texts of a batch are padded to one length:
    their own, rounded up to a multiple of `pad_to` and no more than `max_length`. It depends on
    nothing but the text, so other texts cannot change the arithmetic.
    """

    pad_to: int | None = None
    max_length: int | None = None

    def padded_length(self, length: int) -> int | None:
        """The length a text of `length` tokens is padded to, or None when packed."""
        if self.pad_to is None:
            return None
        rounded = -(-length // self.pad_to) * self.pad_to
        return rounded if self.max_length is None else max(length, min(rounded, self.max_length))
