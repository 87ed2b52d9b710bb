"""`StreamForwards`: a CUDA stream of an engine, and the forward passes that run on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...model.pooling_model import PoolingModel
from .bucketed_forward import BucketedForward, bucketed_forwards
from .own_stream import OwnStream

__all__ = ["StreamForwards", "current"]


class StreamForwards:
    """What one thread launches on at a time; `options` are those of `BucketedForward`.

    Graphs and the integers they read belong to the stream that they were captured on.
    """

    def __init__(
        self,
        models: Sequence[PoolingModel],
        *,
        device: torch.device,
        stream: OwnStream,
        **options: Any,
    ) -> None:
        self._device = device
        self._own = stream
        self.stream = stream.stream
        self.buckets = bucketed_forwards(models, device=device, **options)
        """For each model, or None where it does not run in buckets."""

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the device and the stream the current ones of the calling thread."""
        with current(self._device, self._own):
            yield

    def take_workspace(self) -> None:
        """Have cuBLAS allocate what the calling thread's products on the stream need."""
        with self.current():
            rows = torch.zeros(16, 16, device=self._device)
            rows @ rows

    @property
    def _all(self) -> list[BucketedForward]:
        return [forward for forward in self.buckets if forward is not None]

    def warm_up(self, *, most_texts: int) -> None:
        """Capture the graphs of up to `most_texts` short texts at a time."""
        with self.current():
            for forward in self._all:
                forward.warm_up(most_texts=most_texts)

    @torch.inference_mode()
    def compile_for_long_texts(self) -> None:
        """Have kernels made that only long texts need."""
        with self.current():
            for forward in self._all:
                forward.compile_for_long_texts()

    def free_memory(self) -> None:
        """Let go of the graphs and what they hold."""
        for forward in self._all:
            forward.free_memory()

    def __repr__(self) -> str:
        return f"StreamForwards({self.stream!r}, {self._all!r})"


@contextmanager
def current(device: torch.device, stream: OwnStream) -> Iterator[None]:
    """Makes a device and a stream of it the current ones, for Triton launches there."""
    with torch.cuda.device(device), torch.cuda.stream(stream.stream):
        yield
