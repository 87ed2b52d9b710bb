"""`Clock`: how much of the benchmark's time is left, and the end of a step that takes too long."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(BaseException):
    """A step took longer than it may. No `Exception`: libraries wrap those in their own."""


class Clock:
    """So many seconds from `started`, by `now`."""

    def __init__(
        self,
        seconds: float,
        started: float | None = None,
        *,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.seconds = seconds
        self._now = now
        self._started = now() if started is None else started

    @property
    def gone(self) -> float:
        return self._now() - self._started

    @property
    def left(self) -> float:
        return self.seconds - self.gone

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Raises `OutOfTime` in what runs longer, or beyond the end. In the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, min(seconds, self.left)))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def __repr__(self) -> str:
        return f"Clock(gone={self.gone:.0f}, left={self.left:.0f})"


def _raise(*_: Any) -> None:
    raise OutOfTime("it took too long")
