"""Captured graphs without a GPU: the work is done again where a graph would be replayed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Replayed:
    def __init__(self, work: Callable[[], Tensor], vectors: Tensor) -> None:
        self.work, self.vectors = work, vectors

    def replay(self) -> None:
        self.vectors[...] = self.work()


def capture(work: Callable[[], Tensor]) -> tuple[Replayed, Tensor]:
    vectors = work()
    return Replayed(work, vectors), vectors
