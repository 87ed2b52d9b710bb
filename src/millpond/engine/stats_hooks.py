"""`StatsHooks`: who is told of every batch."""

from __future__ import annotations

import logging
import threading

from ..errors import InvalidOption
from ..locks import fork_safe
from ..stats import BatchStats, StatsHook

__all__ = ["StatsHooks"]

logger = logging.getLogger("millpond")


class StatsHooks:
    """Any thread may add and remove hooks and tell them; one that raises stops nobody."""

    def __init__(self) -> None:
        self._hooks: tuple[StatsHook, ...] = ()
        self._lock = fork_safe(threading.RLock())

    def add(self, hook: StatsHook) -> None:
        """Tell `hook` of every batch from now on. Raises `InvalidOption` if it is no function."""
        if not callable(hook):
            raise InvalidOption(f"hook={hook!r}: it must be a function of a BatchStats")
        with self._lock:
            self._hooks = (*self._hooks, hook)

    def remove(self, hook: StatsHook) -> None:
        """Tell it no more. Nothing happens if it was not there."""
        with self._lock:
            self._hooks = tuple(known for known in self._hooks if known is not hook)

    def tell(self, stats: BatchStats) -> None:
        """Call them all, on this thread and with no lock held, so several threads may be at it."""
        for hook in self._hooks:
            try:
                hook(stats)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and _is_main_thread():
                    raise  # Ctrl-C, during a query that its caller runs
                logger.exception("a stats hook raised; the engine goes on")

    def __repr__(self) -> str:
        return f"StatsHooks({len(self._hooks)})"


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
