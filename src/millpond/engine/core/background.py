"""`BackgroundTasks`: what is left to the background thread, and when it looks at deadlines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ...locks import Gate

__all__ = ["BackgroundTasks"]


class BackgroundTasks:
    """Any thread may add a task and wake the thread at any time, a finalizer too."""

    def __init__(self, *, is_running: bool) -> None:
        self._is_running = is_running  # the thread has not come to its end
        self._tasks: deque[Callable[[], object]] = deque()  # appended to by any thread
        self._wakes = Gate()
        self._wakes_at_s = float("inf")  # under the engine's lock

    def add(self, task: Callable[[], object]) -> bool:
        """Have the thread do something, without the lock; False once it has ended."""
        if self._is_running:
            self._tasks.append(task)
            self._wakes.open()
        return self._is_running

    def wake(self) -> None:
        """Have the thread look now at what has arrived, ended and passed."""
        self._wakes.open()

    def is_late_for(self, deadline_s: float | None) -> bool:
        """Under the lock: whether the thread would wake after a deadline."""
        return deadline_s is not None and deadline_s < self._wakes_at_s

    # On the thread.

    def look(self, deadline_s: float | None, *, is_over: bool) -> None:
        """Under the lock: the thread is going to wait until then, or runs its last tasks."""
        self._wakes_at_s = float("inf") if deadline_s is None else deadline_s
        self._is_running = not is_over

    def run_tasks(self) -> None:
        """Do what was asked for."""
        while self._tasks:
            self._tasks.popleft()()

    def wait(self, timeout_s: float | None) -> None:
        """Wait to be woken, or for so long."""
        self._wakes.wait(None if timeout_s is None else max(0.0, timeout_s))

    def __repr__(self) -> str:
        return f"BackgroundTasks({len(self._tasks)}, running={self._is_running})"
