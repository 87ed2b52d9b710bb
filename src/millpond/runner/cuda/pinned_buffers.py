"""`PinnedBuffers`: pinned host memory that copies to and from the device go through.

Locking pages takes longer than a small batch, so a buffer is kept for the next one. It knows
nothing of what is in them.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ...locks import fork_safe

__all__ = ["PinnedBuffers"]

SMALLEST = 4096  # elements


class PinnedBuffers:
    """Buffers to take and to give back. Any thread may use them.

    Who takes one gives it back when the device is done with it, or drops it.
    """

    def __init__(self, *, pinned: bool = True) -> None:
        self._pinned = pinned
        self._lock = fork_safe(threading.Lock())
        self._free: list[Tensor] = []  # under the lock
        self.made = 0
        """Buffers allocated so far."""

    def take(self, elements: int, dtype: torch.dtype) -> Tensor:
        """A buffer `[≥ elements]`."""
        with self._lock:
            fits = [b for b in self._free if b.dtype == dtype and len(b) >= elements]
            if fits:
                best = min(fits, key=len)
                self._free = [buffer for buffer in self._free if buffer is not best]
                return best
        self.made += 1
        size = max(SMALLEST, 1 << (elements - 1).bit_length())
        return torch.empty(size, dtype=dtype, pin_memory=self._pinned)

    def give(self, buffer: Tensor) -> None:
        """Put a buffer back."""
        with self._lock:
            self._free.append(buffer)

    def clear(self) -> None:
        """Let go of the buffers that are not in use."""
        with self._lock:
            self._free.clear()

    def __repr__(self) -> str:
        return f"PinnedBuffers(free={len(self._free)}, made={self.made})"
