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

from .partial_stream import partial_stream

__all__ = ["OwnStream"]

# Streams of engines that are gone, by the number of the device, the priority and the
# multiprocessors. Threads only append and pop.
_idle: defaultdict[tuple[int, int, int | None], list[torch.cuda.Stream]] = defaultdict(list)


class OwnStream:
    """A stream of a device, that no other code uses while this object is there."""

    def __init__(
        self, device: torch.device, *, priority: int = 0, multiprocessors: int | None = None
    ) -> None:
        """With a `priority` below 0 its kernels start before those that wait on other streams.

        With `multiprocessors` they run on that number of the device's, or `RuntimeError` is raised.
        """
        idle = _idle[device.index, priority, multiprocessors]
        try:
            self.stream = idle.pop()
        except IndexError:
            self.stream = _new_stream(device, priority, multiprocessors)
        weakref.finalize(self, idle.append, self.stream).atexit = False

    def __repr__(self) -> str:
        return f"OwnStream({self.stream!r})"


def _new_stream(
    device: torch.device, priority: int, multiprocessors: int | None
) -> torch.cuda.Stream:
    if multiprocessors is not None:
        return partial_stream(device, multiprocessors)
    return torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]
