"""`PlainRuns`: what it costs to run a bucket without a graph, and when capturing it pays.

A graph saves a thread the time of launching kernels one by one. It is compared with the plain run
before it is used, which costs the device one more pass. Of a large model that pass is several times
as long as its launches, which nothing waits for meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["AtOnce", "PassTimer", "PlainRuns", "TimedRuns"]


ABOUT = 1.2  # times as long, by the clocks of a thread and of a device


class PassTimer(Protocol):
    """Measures one pass on the device."""

    def stop(self) -> None:
        """All of the pass is launched."""

    def seconds(self) -> float | None:
        """How long the device took, or None where it is not through."""


class PlainRuns(Protocol):
    """The plain runs of one bucket. The first may have compiled kernels."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work, which is launched."""

    @property
    def capture_pays(self) -> bool:
        """Whether a graph is worth its cost by now."""

    @property
    def waits_for_launches(self) -> bool:
        """Whether launches are known to take as long as the device does."""


class AtOnce:
    """A bucket that comes back is captured, whatever that costs."""

    capture_pays = False
    waits_for_launches = False
    _came_before = False

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        self.capture_pays, self._came_before = self._came_before, True
        return work()


class _EventTimer:
    """A pass on the current stream."""

    def __init__(self) -> None:
        self._start, self._stop = _event(), _event()
        self._start.record()

    def stop(self) -> None:
        self._stop.record()

    def seconds(self) -> float | None:
        return self._start.elapsed_time(self._stop) / 1000 if self._stop.query() else None


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class TimedRuns:
    """Capturing pays once launches have taken as long as the device takes for one pass.

    So captures never cost more than what was spent without them.
    """

    def __init__(
        self,
        *,
        timer: Callable[[], PassTimer] = _EventTimer,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._timer = timer
        self._clock = clock
        self._timed: PassTimer | None = None  # the device may not be through with its pass
        self._pass_s = float("inf")  # the shortest that was measured
        self._launches_s: list[float] = []  # of every run but the first
        self._came_before = False

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        if self._timed is not None and (seconds := self._timed.seconds()) is not None:
            self._pass_s, self._timed = min(self._pass_s, seconds), None
        since_s, timer = self._clock(), self._timer() if self._timed is None else None
        found = work()
        if timer is not None:
            timer.stop()
            self._timed = timer
        if self._came_before:
            self._launches_s.append(self._clock() - since_s)
        self._came_before = True
        return found

    @property
    def capture_pays(self) -> bool:
        return ABOUT * sum(self._launches_s) >= self._pass_s

    @property
    def waits_for_launches(self) -> bool:
        return ABOUT * min(self._launches_s, default=0.0) >= self._pass_s
