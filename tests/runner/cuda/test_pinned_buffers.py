"""Host memory that is kept for the next batch."""

from __future__ import annotations

import torch

from millpond.runner.cuda.pinned_buffers import PinnedBuffers


def test_a_buffer_given_back_is_used_again() -> None:
    buffers = PinnedBuffers(pinned=False)
    first = buffers.take(5000, torch.int64)
    assert len(first) >= 5000
    buffers.give(first)
    assert buffers.take(4000, torch.int64) is first
    assert buffers.made == 1


def test_a_buffer_in_use_is_not_given_twice() -> None:
    buffers = PinnedBuffers(pinned=False)
    assert buffers.take(10, torch.int64) is not buffers.take(10, torch.int64)
    assert repr(buffers) == "PinnedBuffers(free=0, made=2)"


def test_a_buffer_fits_in_size_and_type() -> None:
    buffers = PinnedBuffers(pinned=False)
    small, large = buffers.take(10, torch.int64), buffers.take(100_000, torch.int64)
    buffers.give(large)
    buffers.give(small)
    assert buffers.take(10, torch.int64) is small, "the smallest that fits"
    assert buffers.take(10, torch.float32).dtype == torch.float32
    assert buffers.take(200_000, torch.int64) is not large
    buffers.clear()
    assert buffers.take(10, torch.int64) is not large
