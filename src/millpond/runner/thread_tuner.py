"""`ThreadTuner`: one thread or two for a short query, by what was measured of late.

Two threads read a small model's weights in half the time, but they meet at every operator. An
OpenMP thread that waits stays awake only as long as the process has no more of them than there are
processors, and whoever opens another pool in it, on any thread, makes two far slower than one. So
neither is trusted: both are timed, the quicker one is taken, and the other is tried now and then,
ever more seldom while it stays the slower one.
"""

from __future__ import annotations

from collections import deque
from statistics import median

__all__ = ["ThreadTuner"]

KEPT = 5  # times of each that are compared by their medians


FIRST_PAUSE, LONGEST_PAUSE = 16, 128  # passes between two trials of the slower one


class ThreadTuner:
    """How many threads the next pass takes. Used by one thread at a time."""

    def __init__(self, counts: tuple[int, int] = (1, 2)) -> None:
        self._times: dict[int, deque[float]] = {count: deque(maxlen=KEPT) for count in counts}
        self._pause = FIRST_PAUSE
        self._until_trial = FIRST_PAUSE
        self._quicker = counts[0]

    def next(self) -> int:
        """Threads for a pass that is about to start."""
        for count, times in self._times.items():
            if len(times) < KEPT:
                return count
        self._until_trial -= 1
        if self._until_trial > 0:
            return self._quicker
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._until_trial = self._pause
        return next(count for count in self._times if count != self._quicker)

    def took(self, count: int, seconds: float) -> None:
        """A pass on so many threads took so long."""
        self._times[count].append(seconds)
        if any(len(times) < KEPT for times in self._times.values()):
            return
        quicker = min(self._times, key=lambda each: median(self._times[each]))
        if quicker != self._quicker:
            self._quicker = quicker
            self._pause = self._until_trial = FIRST_PAUSE

    def __repr__(self) -> str:
        return f"ThreadTuner(quicker={self._quicker}, next_trial_in={self._until_trial})"
