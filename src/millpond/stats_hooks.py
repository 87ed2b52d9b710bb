"""`StatsHooks`: who is told of every batch, one batch at a time."""

from __future__ import annotations

import logging
import threading

from .stats import BatchStats, StatsHook

__all__ = ["StatsHooks"]

logger = logging.getLogger("millpond")


class StatsHooks:
    """Any thread may add and remove hooks and tell them; one that raises stops nobody."""

    def __init__(self) -> None:
        self._hooks: tuple[StatsHook, ...] = ()
        self._lock = threading.Lock()
        self._turn = threading.RLock()  # a hook may itself embed a text

    def add(self, hook: StatsHook) -> None:
        """Tell `hook` of every batch from now on."""
        with self._lock:
            self._hooks = (*self._hooks, hook)

    def remove(self, hook: StatsHook) -> None:
        """Tell it no more. Nothing happens if it was not there."""
        with self._lock:
            self._hooks = tuple(known for known in self._hooks if known is not hook)

    def tell(self, stats: BatchStats) -> None:
        """Call them all, on this thread."""
        hooks = self._hooks
        with self._turn:
            for hook in hooks:
                try:
                    hook(stats)
                except Exception:
                    logger.exception("a stats hook raised; the engine goes on")

    def __repr__(self) -> str:
        return f"StatsHooks({len(self._hooks)})"
