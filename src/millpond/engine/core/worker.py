"""`WorkerPool`: the workers of an engine, and which of them a text wakes.

Everything but a worker's executor and its gate is under the engine's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ...locks import Gate
from ...runner.base import ModelRunner
from ...scheduler.request import Priority
from .executor import BatchExecutor, DeviceSlot, Place

__all__ = ["Worker", "WorkerPool"]

QUERIES, BULK, ANY = (Priority.INTERACTIVE,), (Priority.BULK,), tuple(Priority)


class Worker:
    """A thread that runs one batch at a time on a runner of its own or one it shares.

    Workers with the same `slot` keep one device busy: while the batch of one runs there, the next
    is planned and launched by another.
    """

    def __init__(
        self,
        executor: BatchExecutor,
        slot: DeviceSlot,
        priorities: Collection[Priority],
        replica: int,
    ) -> None:
        self.executor = executor  # the thread's own
        self.replica = replica  # which of the runners it is on, by its place among them
        self.slot = slot
        self.priorities = priorities  # of the texts that it takes
        self.retired = False  # its runner is lost
        self.guests = 0  # batches of lost runners that were sent to its own
        self.idle = False  # it waits for work
        self.woken = False  # of an idle one: a thread has woken it
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


class WorkerPool:
    """The workers of every runner: some for any batch or, where queries run apart, for bulk, and
    where a runner has room others for queries alone.

    No more batches run at a time than there are workers of the first kind, but for queries behind
    bulk, and where they run apart.
    """

    def __init__(self, runners: Sequence[ModelRunner], *, clock: Callable[[], float]) -> None:
        # Those for queries come first: they are woken first. Then one of each device.
        slots = [[DeviceSlot() for _ in range(runner.limits.workers)] for runner in runners]

        def worker(replica: int, slot: DeviceSlot, priorities: Collection[Priority]) -> Worker:
            executor = BatchExecutor(runners[replica], slot, clock=clock)
            return Worker(executor, slot, priorities, replica)

        for_queries = [
            worker(place, own[0] if runner.limits.queries_apart else DeviceSlot(), QUERIES)
            for place, (runner, own) in enumerate(zip(runners, slots, strict=True))
            for _ in range(runner.limits.query_workers)
        ]
        general = [
            worker(place, slot, BULK if runner.limits.queries_apart else ANY)
            for turn in range(max(runner.limits.depth for runner in runners))
            for place, (runner, own) in enumerate(zip(runners, slots, strict=True))
            for slot in own
            if turn < runner.limits.depth
        ]
        self.workers = (*for_queries, *general)
        """Those whose runner is not lost."""
        self._general = len(general)
        self.in_flight = 0
        """Batches planned whose results are not delivered."""
        self._bulk_in_flight = 0  # and that are not of queries alone
        self.running_threads = len(self.workers)
        """Workers whose threads have not come to their end."""

    def look(self, worker: Worker) -> None:
        """A worker looks for work: its last batch is no longer in flight."""
        self.in_flight -= worker.busy
        self._bulk_in_flight -= worker.runs_bulk
        worker.idle = worker.woken = worker.busy = worker.runs_bulk = False

    def start(self, worker: Worker, *, has_bulk: bool) -> None:
        """A worker that looks for work has a batch."""
        worker.busy, worker.runs_bulk = True, has_bulk
        self.in_flight += 1
        self._bulk_in_flight += has_bulk

    def can_start(self, worker: Worker) -> bool:
        """Whether a worker without a batch may run one now."""
        is_free = self.in_flight < self._general or worker.priorities == BULK
        return is_free or (worker.priorities == QUERIES and self._bulk_in_flight > 0)

    def shares(self, worker: Worker) -> tuple[int, int]:
        """Among how many devices what waits is divided: queries, and bulk."""
        busy = set()
        queries, bulk = {id(worker.slot)}, {id(worker.slot)}
        for other in self.workers:
            if other.busy:
                busy.add(id(other.slot))
            elif other.idle:
                queries.add(id(other.slot))
                if other.priorities != QUERIES:
                    bulk.add(id(other.slot))
        busy.discard(id(worker.slot))
        free = self._general - self.in_flight
        return min(free, len(queries - busy)), min(free, len(bulk - busy))

    def retire(self, runner: ModelRunner) -> bool:
        """A runner is lost: its workers run nothing more. Whether it was not known to be."""
        lost = [worker for worker in self.workers if worker.executor.runner is runner]
        for worker in lost:
            worker.retired = True
            self._general -= worker.priorities != QUERIES
            worker.wake()
        self.workers = tuple(worker for worker in self.workers if not worker.retired)
        return bool(lost)

    @property
    def runners(self) -> int:
        """Runners that are left."""
        return len({id(worker.executor.runner) for worker in self.workers})

    def place(self) -> Place | None:
        """Where a batch of a lost runner may run; None where no runner is left."""
        general = [worker for worker in self.workers if worker.priorities != QUERIES]
        if not general:
            return None
        worker = min(general, key=lambda worker: worker.busy + worker.guests)
        worker.guests += 1
        return worker.executor.runner, worker.slot

    def wake_one(self, *, queries: bool, bulk: bool) -> None:
        """Wake one for what is ready; having planned it, it has the next one woken."""
        for worker in self.workers:
            has_work = (queries and worker.priorities != BULK) or (
                bulk and worker.priorities != QUERIES
            )
            if worker.idle and not worker.woken and has_work and self.can_start(worker):
                worker.wake()
                return

    def wake_all(self) -> None:
        """Let everyone look again, at the clock or for the end."""
        for worker in self.workers:
            worker.wake()

    def __repr__(self) -> str:
        return f"WorkerPool(workers={len(self.workers)}, in_flight={self.in_flight})"
