"""`OwnStream`: a CUDA stream of one engine.

So no other work on the device waits for the engine's. The caching allocator keeps freed
memory by the stream that it was allocated on, for that stream alone. So all that an engine does,
from loading its weights on, is to be done on its streams, and those of an engine that is gone go to
the next one on the device, with the memory that is kept there.
"""

from __future__ import annotations

import weakref
from collections import defaultdict

import torch

__all__ = ["OwnStream"]

# Streams of engines that are gone, by the number of the device and the priority. Threads only
# append and pop.
_idle: defaultdict[tuple[int, int], list[torch.cuda.Stream]] = defaultdict(list)


class OwnStream:
    """A stream of a device, that no other code uses while this object is there."""

    def __init__(self, device: torch.device, *, priority: int = 0) -> None:
        """With a `priority` below 0 its kernels start before those that wait on other streams."""
        idle = _idle[device.index, priority]
        try:
            self.stream = idle.pop()
        except IndexError:
            self.stream = torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]
        weakref.finalize(self, idle.append, self.stream).atexit = False

    def __repr__(self) -> str:
        return f"OwnStream({self.stream!r})"
