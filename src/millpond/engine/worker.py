"""`WorkerPool`: the workers of an engine, and which of them a text wakes.

Everything but a worker's executor and its gate is under the engine's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..locks import Gate
from ..runner.base import ModelRunner
from .executor import BatchExecutor, DeviceSlot

__all__ = ["Worker", "WorkerPool"]


class Worker:
    """A thread that runs one batch at a time on a runner of its own or one it shares.

    Workers with the same `slot` keep one device busy: while the batch of one runs there, the next
    is planned and launched by another.
    """

    def __init__(self, executor: BatchExecutor, slot: DeviceSlot, *, queries_only: bool) -> None:
        self.executor = executor  # the thread's own
        self.slot = slot
        self.queries_only = queries_only
        self.idle = False  # it waits for work
        self.woken = False  # of an idle one: somebody has woken it
        self.busy = False  # its batch is in flight
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
        self.idle = self.woken = self.busy = False


class WorkerPool:
    """Workers for any batch, and beside them, where a runner has room, some for queries alone.

    No more batches run at a time than there are general workers, but for queries behind bulk.
    """

    def __init__(self, runners: Sequence[ModelRunner], *, clock: Callable[[], float]) -> None:
        # Those for queries come first: they are woken first. Then one of each device.
        for_queries = [
            _worker(runner, DeviceSlot(), clock, queries_only=True)
            for runner in runners
            for _ in range(runner.query_workers)
        ]
        slots = [(runner, DeviceSlot()) for runner in runners for _ in range(runner.workers)]
        general = [
            _worker(runner, slot, clock, queries_only=False)
            for turn in range(max(runner.depth for runner in runners))
            for runner, slot in slots
            if turn < runner.depth
        ]
        self.workers = (*for_queries, *general)
        self._general = len(general)
        self.working = len(self.workers)
        """Workers whose threads have not come to their end."""

    def can_start(self, worker: Worker) -> bool:
        """Whether the worker may run a batch now."""
        if self._free_slots(worker) > 0:
            return True
        return worker.queries_only and any(other.busy and other.runs_bulk for other in self.workers)

    def shares(self, worker: Worker) -> tuple[int, int]:
        """Among how many devices what waits is divided: queries, and bulk."""
        idle = [other for other in self.workers if other.idle and other.slot is not worker.slot]
        busy = {id(other.slot) for other in self.workers if other.busy}
        queries = {id(other.slot) for other in idle} - busy
        bulk = {id(other.slot) for other in idle if not other.queries_only} - busy
        free = self._free_slots(worker)
        return min(free, 1 + len(queries)), min(free, 1 + len(bulk))

    def _free_slots(self, worker: Worker) -> int:
        """Batches that may run beside those of the other workers."""
        return self._general - sum(other.busy for other in self.workers if other is not worker)

    def is_idle(self, *, but: Worker | None = None) -> bool:
        """Whether no other worker has a batch in flight."""
        return not any(other.busy for other in self.workers if other is not but)

    def wake_one(self, *, queries: bool, bulk: bool) -> None:
        """Wake one for what is ready; having planned it, it has the next one woken."""
        for worker in self.workers:
            has_work = queries or (bulk and not worker.queries_only)
            if worker.idle and not worker.woken and has_work and self.can_start(worker):
                worker.wake()
                return

    def wake_all(self) -> None:
        """Let everyone look again, at the clock or for the end."""
        for worker in self.workers:
            worker.wake()

    @property
    def in_flight(self) -> int:
        """Batches planned whose results are not delivered."""
        return sum(worker.busy for worker in self.workers)

    def __repr__(self) -> str:
        return f"WorkerPool(workers={len(self.workers)}, in_flight={self.in_flight})"


def _worker(
    runner: ModelRunner, slot: DeviceSlot, clock: Callable[[], float], *, queries_only: bool
) -> Worker:
    executor = BatchExecutor(runner, slot, clock=clock)
    return Worker(executor, slot, queries_only=queries_only)
