"""`RankGroup`: the processes that hold one model, and what they do together.

It is made in child processes only. Sums of a pass go through NCCL on CUDA and gloo on a CPU, in
the order in which the passes are launched, which is the same on every rank. What the ranks have to
agree on goes through gloo.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["OutOfStep", "RankGroup"]

LOAD_WITHIN = timedelta(hours=1)  # ranks read weights at their own pace
SUM_WITHIN = timedelta(seconds=60)
"""A rank that keeps the others waiting for longer in a pass is taken for lost."""
RAISE_WITHIN = timedelta(seconds=5)
"""Where a pass raises on one rank, so long until it has on all, or the model has ended."""
SHARED_SUM = 2**21
"""Numbers of a sum from which each rank adds up a share."""


class OutOfStep(BaseException):
    """A rank failed where others did not: the process ends, and with it the model."""


class RankGroup:
    """The ranks of a model, as one of them sees them. One thread uses it at a time."""

    def __init__(self, *, rank: int, size: int, rendezvous: str, device: torch.device) -> None:
        """Meet the others at the `rendezvous`, what torch calls an `init_method`."""
        self.rank = rank
        self.size = size
        backend = "nccl" if device.type == "cuda" else "gloo"
        own: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
        dist.init_process_group(
            backend,
            init_method=rendezvous,
            rank=rank,
            world_size=size,
            timeout=LOAD_WITHIN,
            **own,
        )
        self._sums = dist.new_group(backend=backend, timeout=SUM_WITHIN)
        self._agreements = dist.new_group(backend="gloo", timeout=LOAD_WITHIN)
        self._failures = dist.new_group(backend="gloo", timeout=RAISE_WITHIN)
        self._count = 0  # of sums; by the thread that launches

    def add_up(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum of every rank's part, in this dtype; the part may be overwritten.

        Of many float32 numbers each rank adds up a share and sends it rounded, three quarters of
        the bytes of a sum in float32; of few, one operation is quicker than two.
        """
        self._count += 1
        if part.dtype == dtype or part.numel() < SHARED_SUM or part.numel() % self.size:
            dist.all_reduce(part, group=self._sums)
            return part.to(dtype)
        share = part.new_empty(part.numel() // self.size)
        dist.reduce_scatter_tensor(share, part.view(-1), group=self._sums)
        whole = part.new_empty(part.numel(), dtype=dtype)
        dist.all_gather_into_tensor(whole, share.to(dtype), group=self._sums)
        return whole.view(part.shape)

    def least(self, numbers: Sequence[int]) -> list[int]:
        """Of each number, the least that a rank has."""
        found = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self._agreements)
        return [int(number) for number in found]

    def all_of(self, holds: bool) -> bool:
        """Whether it holds on every rank."""
        return self.least([int(holds)]) == [1]

    def end_unless_all_raised(self, error: Exception) -> None:
        """Return where every rank's pass has raised at the same point; raise `OutOfStep` if not.

        Others would wait for this rank's part of a sum, or take a later one for it.
        """
        counts = torch.tensor([self._count, -self._count], dtype=torch.int64)
        try:
            dist.all_reduce(counts, dist.ReduceOp.MIN, group=self._failures)
        except RuntimeError:
            raise OutOfStep("a pass failed on this rank alone") from error
        if counts.tolist() != [self._count, -self._count]:
            raise OutOfStep("a pass failed on every rank, but not at one point") from error

    def __repr__(self) -> str:
        return f"RankGroup(rank={self.rank}, size={self.size}, sums={self._count})"
