"""`WorkerPool`: the workers of a loop, and which of them a text wakes.

Everything but a worker's executor and its gate is under the loop's lock.
"""

from __future__ import annotations

from collections.abc import Callable

from ..locks import Gate
from .executor import BatchExecutor

__all__ = ["Worker", "WorkerPool"]


class Worker:
    """A thread that plans batches and runs them."""

    def __init__(self, executor: BatchExecutor, *, queries_only: bool) -> None:
        self.executor = executor  # the thread's own
        self.queries_only = queries_only
        self.idle = False  # it waits, or has not looked for work since
        self.woken = False  # of an idle one: somebody has woken it
        self.busy = False  # it has planned a batch that is not home yet
        self.runs_bulk = False  # and that batch is not of queries alone
        self._has_work = Gate()

    def wait(self) -> None:
        """Without the lock, and having looked for work under it: wait to be woken."""
        self._has_work.wait()

    def wake(self) -> None:
        """Let it look for work, now or when it would wait for some."""
        self._has_work.open()  # first: a caller may be interrupted here, and it must not sleep on
        self.woken = True

    def looks(self) -> None:
        """It is looking for work."""
        self.idle = self.woken = False


class WorkerPool:
    """`general` workers for any batch, and `for_queries` beside them for queries alone.

    No more batches run at a time than there are general workers, but for queries behind bulk.
    """

    def __init__(
        self,
        executor: Callable[[], BatchExecutor],
        *,
        general: int,
        for_queries: int,
    ) -> None:
        self._general = general
        # Those for queries come first: they are woken first.
        self.workers = tuple(
            Worker(executor(), queries_only=queries_only)
            for queries_only, count in ((True, for_queries), (False, general))
            for _ in range(count)
        )
        self.working = len(self.workers)
        """Workers whose threads have not come to their end."""

    def may_start(self, worker: Worker) -> bool:
        """Whether the worker may run a batch now."""
        if self._places(worker) > 0:
            return True
        return worker.queries_only and any(other.busy and other.runs_bulk for other in self.workers)

    def takers(self, worker: Worker) -> tuple[int, int]:
        """Among how many workers what waits is divided: queries, and bulk."""
        idle = [other for other in self.workers if other.idle]
        general = [other for other in idle if not other.queries_only]
        places = self._places(worker)
        return min(places, 1 + len(idle)), min(places, 1 + len(general))

    def _places(self, worker: Worker) -> int:
        """Batches that may run beside those of the other workers."""
        return self._general - sum(other.busy for other in self.workers if other is not worker)

    def is_idle(self, *, but: Worker | None = None) -> bool:
        """Whether no other worker has a batch that is not home yet."""
        return not any(other.busy for other in self.workers if other is not but)

    def wake_one(self, *, queries: bool, bulk: bool) -> None:
        """Wake one for what is ready; having planned it, it has the next one woken."""
        for worker in self.workers:
            has_work = queries or (bulk and not worker.queries_only)
            if worker.idle and not worker.woken and has_work and self.may_start(worker):
                worker.wake()
                return

    def wake_all(self) -> None:
        """Let everyone look again, at the clock or for the end."""
        for worker in self.workers:
            worker.wake()

    @property
    def in_flight(self) -> int:
        """Batches launched and not home yet."""
        return sum(len(worker.executor) for worker in self.workers)

    def __repr__(self) -> str:
        busy = sum(worker.busy for worker in self.workers)
        return f"WorkerPool(workers={len(self.workers)}, busy={busy}, in_flight={self.in_flight})"
