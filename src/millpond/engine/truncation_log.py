"""`TruncationLog`: says how many texts of many calls were cut short, and what to do about it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..stats import CallProgress, ProgressHook

__all__ = ["CallTotals", "TruncationLog"]

logger = logging.getLogger("millpond")


class CallTotals:
    """A progress hook that adds up what it is told, and passes it on."""

    def __init__(self, then: ProgressHook | None = None) -> None:
        self.texts = self.truncated = 0  # under the lock: the engine's threads tell it
        self._then = then
        self._lock = threading.Lock()

    def __call__(self, progress: CallProgress) -> None:
        with self._lock:
            self.texts += progress.texts
            self.truncated += progress.truncated
        if self._then is not None:
            self._then(progress)


class TruncationLog:
    """Logs that calls cut texts short, when such texts are twice as many as when it last did.

    `advice` says what to do about it where the model reads so many tokens, None for no one limit.
    Without a lock: two calls that end at once may miscount, which a log line survives.
    """

    def __init__(self, advice: Callable[[int | None], str]) -> None:
        self.texts = self.truncated = self._logged = 0
        self._advice = advice

    @contextmanager
    def call(
        self, max_length: int | None, then: ProgressHook | None = None
    ) -> Iterator[CallTotals]:
        """The progress hook for a call, or for several in one; it tells `then` too."""
        totals = CallTotals(then)
        yield totals
        self.texts += totals.texts
        self.truncated += totals.truncated
        if totals.truncated and self.truncated >= 2 * self._logged:
            self._logged = self.truncated
            logger.warning(
                "%d of %d texts were longer than the %smodel reads and lost a part: %s",
                *(self.truncated, self.texts),
                "" if max_length is None else f"{max_length} tokens the ",
                self._advice(max_length),
            )

    def __repr__(self) -> str:
        return f"TruncationLog(texts={self.texts}, truncated={self.truncated})"
