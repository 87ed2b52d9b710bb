"""`Deadlines`: when the calls of requests time out, the earliest first."""

from __future__ import annotations

import heapq
import itertools
import weakref

from .request import Request

__all__ = ["Deadlines"]

FEW = 64


class Deadlines:
    """Of requests that have not ended. Weakly: one that has is not kept until its deadline."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, weakref.ref[Request]]] = []
        self._most = FEW  # at this size, those of ended requests are taken out
        self._tie = itertools.count()

    def add(self, request: Request, deadline_s: float) -> None:
        """On the engine's clock."""
        if len(self._heap) >= self._most:
            self._heap = [entry for entry in self._heap if _is_open(entry[2]())]
            heapq.heapify(self._heap)
            self._most = max(FEW, 2 * len(self._heap))
        heapq.heappush(self._heap, (deadline_s, next(self._tie), weakref.ref(request)))

    def earliest(self) -> float | None:
        """Those before it, of requests that have ended, are dropped."""
        while self._heap:
            deadline_s, _, found = self._heap[0]
            if _is_open(found()):
                return deadline_s
            heapq.heappop(self._heap)
        return None

    def take_passed(self, now_s: float) -> Request | None:
        """A request whose deadline has passed; each is given once."""
        while (deadline_s := self.earliest()) is not None and deadline_s <= now_s:
            request = heapq.heappop(self._heap)[2]()
            if request is not None:
                return request
        return None

    def __len__(self) -> int:
        return len(self._heap)

    def __repr__(self) -> str:
        return f"Deadlines(requests={len(self)}, earliest={self.earliest()})"


def _is_open(request: Request | None) -> bool:
    """Whether a request may still pass its deadline."""
    return request is not None and request.remaining > 0 and not request.dead
