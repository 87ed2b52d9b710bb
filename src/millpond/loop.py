"""`Loop`: the threads that serve one model, and the lock their state is under.

The tokenising thread keeps a few batches of token ids ahead. Each worker asks the scheduler for a
batch only when it can run one, so batches grow by themselves under load and a lone query runs at
once. Planning happens under the lock, work outside it.

The threads know this object and not the engine, so an engine nobody holds any more can be
collected while they finish what was accepted.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from . import ending
from .crew import Crew, Worker
from .embeddings import Embeddings
from .errors import EngineClosed, EngineError, EngineFailed, MillpondError
from .executor import BatchExecutor
from .outcome import deadline_error, end, engine_failure, queue_full, warn_of_truncation
from .runner import BatchRunner
from .scheduling.batch import Batch, Segment
from .scheduling.job import Chunk, Job, Lane
from .scheduling.scheduler import Scheduler
from .scheduling.twins import Follower
from .stats import BatchStats, EngineStats, Totals
from .stats_hooks import StatsHooks

__all__ = ["Health", "Loop"]

Health = Literal["ready", "closing", "closed", "failed"]
# Queries up to so many, and up to this guess, are tokenised by their caller and not by the thread.
INLINE_TEXTS, INLINE_TOKENS = 16, 2048
logger = logging.getLogger("millpond")


class Loop:
    """Accepts jobs, runs them, and ends each exactly once.

    Whoever takes a job out of `_pending`, under the lock, is the one that ends its future.
    """

    def __init__(
        self,
        runner: BatchRunner,
        scheduler: Scheduler,
        *,
        name: str = "millpond",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self._runner = runner
        self.hooks = StatsHooks()
        # Everything below is under the lock.
        self._lock = threading.RLock()
        self._crew = Crew(
            # Weakly: without a cycle, the last thread to end takes the weights with it.
            partial(BatchExecutor, runner, weakref.proxy(self), clock=clock),
            self._lock,
            general=runner.workers,
            for_queries=runner.query_workers,
        )
        self._tokenizing_has_work = threading.Condition(self._lock)
        self._admission = threading.Condition(self._lock)
        self._scheduler = scheduler
        self._pending: dict[int, Job] = {}  # accepted and not ended
        self._caller_thread: threading.Thread | None = None  # that runs a batch of its own
        self._health: Health = "ready"
        self._cause: BaseException | None = None
        self._totals = Totals()
        self._told_of_truncation = False
        workers = enumerate(self._crew.workers)
        work = {f"batch-{i}": partial(self._batch_all, worker) for i, worker in workers}
        self._threads = tuple(
            threading.Thread(target=self._guarded, args=(work,), name=f"{name}-{role}", daemon=True)
            for role, work in {"tokenize": self._tokenize_all, **work}.items()
        )
        for thread in self._threads:
            thread.start()
        ending.note(self, self._threads)

    # Callers.

    def submit(
        self, job: Job, *, wait: bool = True, block: bool = False, here: bool = False
    ) -> None:
        """Accept a job, or raise.

        Where the queue is full, a job that may not `wait` raises `QueueFull`; one that may waits
        its turn, and `block` keeps the caller until it is admitted. With `here` the caller is going
        to wait for the result, and its thread may run what it would wait for.
        """
        self._check_open()
        if not len(job):
            end(job, result_s=self.clock())
            return
        chunk = self._tokenize_inline(job)
        with self._lock:
            self._check_open()
            if not wait and not self._scheduler.has_room_for(job):
                raise queue_full(job, self._scheduler.waiting_tokens(job.lane))
            self._pending[job.id] = job
            self._scheduler.submit(job, self.clock(), chunk)
            here = here and self._may_run_here(job)
            if job.deadline_s is not None:  # who waits looks at the clock again
                self._wake_all()
            elif not here:
                self._wake()
        # By its id: a future that held its job would be a cycle, and keep the vectors for long.
        # Weakly: a future somebody keeps does not keep the weights.
        job.future.add_done_callback(partial(_forget_if_cancelled, weakref.ref(self), job.id))
        if here:
            self._run_here(job)
        if block and not self.owns_this_thread:
            self._block_until_admitted(job)

    def _tokenize_inline(self, job: Job) -> Chunk | None:
        """A short query skips the tokenising thread: two thread switches less to wait for."""
        few = len(job) <= INLINE_TEXTS and job.waiting_tokens <= INLINE_TOKENS
        if job.lane is Lane.BULK or not few:
            return None
        return self._tokenize(job, np.arange(len(job)))

    def _may_run_here(self, job: Job) -> bool:
        """Whether the thread of a job's caller may run it: nobody else is at work or waits.

        Several texts are left to the workers, which divide them.
        """
        alone = len(self._pending) == 1 and self._crew.is_idle()
        few = len(job) == 1 and job.untokenized == 0 and job.deadline_s is None
        return alone and few and self._runner.runs_here(job.waiting_tokens)

    def _run_here(self, job: Job) -> None:
        """Run a job on its caller's thread: two thread switches less to wait for."""
        caller, batch = self._crew.caller, None
        try:
            with self._lock:
                if self._may_run_here(job):
                    self._caller_thread, caller.busy = threading.current_thread(), True
                    batch = self._scheduler.next_batch(self.clock(), queries_only=True)
            if batch is not None:
                caller.executor.launch(batch)
                caller.executor.finish_oldest()
        except Exception as error:
            self._fail(error)
        except BaseException:  # KeyboardInterrupt: nobody will hold the future
            job.future.cancel()
            if batch is not None:
                caller.executor.abandon()
                self.batch_failed(batch)
                self.texts_dropped(batch.segments)
            raise
        finally:
            with self._lock:
                if self._caller_thread is threading.current_thread():
                    self._caller_thread, caller.busy = None, False
                if self._is_over():
                    self._wake_all()
                elif self._pending:  # they came meanwhile, and nobody may have been free for them
                    self._wake()

    def _block_until_admitted(self, job: Job) -> None:
        try:
            with self._lock:
                while not (job.admitted or job.dead):
                    self._admission.wait()
        except BaseException:  # KeyboardInterrupt: nobody will hold the future
            job.future.cancel()
            raise

    def _check_open(self) -> None:
        with self._lock:
            if self._health == "failed":
                raise engine_failure(self._cause)
            if self._health != "ready":
                raise EngineClosed("the engine is closed; make a new one")

    def expire(self, job: Job) -> None:
        """End a job whose caller saw its deadline pass."""
        with self._lock:
            ours = self._drop(job)
        if ours:
            end(job, deadline_error(job))

    def forget(self, job_id: int) -> None:
        """Drop a job whose caller cancelled it."""
        with self._lock:
            job = self._pending.get(job_id)
            ours = job is not None and self._drop(job)
        if job is not None and ours:
            end(job)  # tells those who wait on several futures at once

    def _drop(self, job: Job) -> bool:
        """Under the lock: plan nothing more of a job; whether it is the caller's to end."""
        if self._pending.pop(job.id, None) is None:
            return False
        self._totals.cancelled_texts += job.remaining
        self._scheduler.forget(job)
        if self._is_over():  # it was the last one, and those who wait may leave
            self._wake_all()
        else:
            self._wake()
        return True

    def _wake(self) -> None:
        self._wake_worker()
        self._tokenizing_has_work.notify()
        self._admission.notify_all()

    def _wake_worker(self) -> None:
        self._crew.wake_one(
            queries=self._scheduler.has_ready(Lane.INTERACTIVE),
            bulk=self._scheduler.has_ready(Lane.BULK),
        )

    def _wake_all(self) -> None:
        self._crew.wake_all()
        self._wake()

    def close(self, *, drain: bool, wait: bool = True) -> None:
        """Stop: finish what was accepted (`drain`), or fail all of it but what is running."""
        with self._lock:
            if self._health == "ready":
                self._health = "closing"
            abandoned = [] if drain else [j for j in list(self._pending.values()) if self._drop(j)]
            self._wake_all()
        for job in abandoned:
            end(job, EngineClosed("the engine was closed before the call was finished"))
        if wait and not self.owns_this_thread:
            for thread in self._threads:
                thread.join()

    @property
    def owns_this_thread(self) -> bool:
        """Whether the caller is a callback on a thread of ours, where waiting would be for ever."""
        thread = threading.current_thread()
        return thread in self._threads or thread is self._caller_thread

    @property
    def health(self) -> Health:
        """`closing` becomes `closed` when the last accepted text is through."""
        with self._lock:
            return self._health

    def stats(self) -> EngineStats:
        """Totals since the start, and what is waiting now."""
        with self._lock:
            prefixes = self._scheduler.prefixes
            return self._totals.snapshot(
                prefix_cache=None if prefixes is None else prefixes.stats,
                waiting_interactive_tokens=self._scheduler.waiting_tokens(Lane.INTERACTIVE),
                waiting_bulk_tokens=self._scheduler.waiting_tokens(Lane.BULK),
            )

    def abandon_in_child(self) -> None:
        """In a forked child: the threads stayed behind, so nothing pending here will ever run."""
        pending, self._pending = list(self._pending.values()), {}
        for job in pending:
            job.future.fail_in_child(
                EngineFailed("the process was forked; this call goes on in the parent only")
            )

    # All threads.

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # nobody may wait for a thread that is gone
            self._fail(error)

    def _fail(self, cause: BaseException) -> None:
        with self._lock:
            if self._health == "failed":
                return
            self._health = "failed"
            self._cause = cause
            pending = [job for job in list(self._pending.values()) if self._drop(job)]
            self._wake_all()
        for job in pending:
            end(job, engine_failure(cause))
        logger.error("the engine failed: %s: %s", type(cause).__name__, cause, exc_info=cause)

    def _is_over(self) -> bool:
        return self._health in ("closed", "failed") or (
            self._health == "closing" and not self._pending
        )

    # The tokenising thread.

    def _tokenize_all(self) -> None:
        while self._tokenize_next():
            pass  # a round of its own keeps nothing of the last job while it waits for the next

    def _tokenize_next(self) -> bool:
        claimed = self._next_to_tokenize()
        if claimed is None:
            return False
        job, rows = claimed
        try:
            chunk = self._tokenize(job, rows)
        except MillpondError as error:  # a text of the call cannot be accepted after all
            with self._lock:
                ours = self._drop(job)
            if ours:
                end(job, error)
            return True
        with self._lock:
            self._scheduler.ready(job, chunk, self.clock())
            self._wake_worker()
        return True

    def _tokenize(self, job: Job, rows: npt.NDArray[np.int64]) -> Chunk:
        try:
            return self._runner.tokenize(job, rows)
        except MillpondError:
            raise
        except Exception as error:  # nobody foresaw it: this call fails, the engine goes on
            raise EngineError(
                f"the tokenizer failed with {type(error).__name__}: {error}"
            ) from error

    def _next_to_tokenize(self) -> tuple[Job, npt.NDArray[np.int64]] | None:
        with self._lock:
            while (claimed := self._scheduler.next_to_tokenize()) is None and not self._is_over():
                self._tokenizing_has_work.wait()
            return claimed

    # The workers' threads.

    def _batch_all(self, worker: Worker) -> None:
        while self._run_next(worker):
            pass
        with self._lock:
            self._crew.working -= 1
            if self._health == "closing" and not self._crew.working:
                self._health = "closed"
            self._wake_all()

    def _run_next(self, worker: Worker) -> bool:
        executor = worker.executor
        batch = self._next_batch(worker, wait=not executor)
        if batch is not None:
            executor.launch(batch)
        elif not executor:
            return False
        if batch is None or executor.is_full:
            executor.finish_oldest()
        return True

    def _next_batch(self, worker: Worker, *, wait: bool) -> Batch | None:
        """Plan a batch. Where there is none, `wait` for one, or for the end."""
        while True:
            with self._lock:
                now_s = self.clock()
                expired = [job for job in self._scheduler.expired(now_s) if self._drop(job)]
                worker.busy = not wait
                batch = self._plan(worker, now_s)
                if batch is not None:
                    worker.busy, worker.runs_bulk = True, batch.has_bulk
                    self._wake()
                elif not expired:
                    if not wait or self._is_over():
                        return None
                    if not self._pending and self._crew.is_idle(but=worker):
                        self._scheduler.check_idle()
                    self._wake()  # all that was ready may have joined texts in flight
                    deadline_s = self._scheduler.next_deadline()
                    worker.wait(None if deadline_s is None else max(0.0, deadline_s - now_s))
            for job in expired:
                end(job, deadline_error(job))
            if batch is not None:
                return batch

    def _plan(self, worker: Worker, now_s: float) -> Batch | None:
        if not self._crew.may_start(worker):
            return None
        query_takers, bulk_takers = self._crew.takers(worker)
        return self._scheduler.next_batch(
            now_s,
            queries_only=worker.queries_only,
            query_takers=query_takers,
            bulk_takers=bulk_takers,
        )

    def batch_ran(self, batch: Batch, stats: BatchStats) -> None:
        """The executor's word: learn from it, count it, pass it on."""
        with self._lock:
            self._scheduler.record(batch, stats.forward_s)
            self._totals.add(stats)
        self.hooks.tell(stats)

    def batch_landed(self, batch: Batch, *, keep: bool) -> Mapping[int, Sequence[Follower]]:
        """The executor's word: others may go on from what the batch computed, or compute again."""
        with self._lock:
            return self._scheduler.landed(batch, self.clock(), keep=keep)

    def batch_failed(self, batch: Batch) -> None:
        """The executor's word: nobody may go on from what the batch computed."""
        with self._lock:
            self._scheduler.failed(batch)

    def texts_dropped(self, segments: Sequence[Segment]) -> None:
        """The executor's word: who waits for one of these has to be computed itself."""
        if segments:
            with self._lock:
                self._scheduler.dropped(segments, self.clock())
                self._wake_worker()

    def job_completed(self, job: Job) -> None:
        """The executor's word: the job has nothing left to wait for."""
        truncated = int(job.truncated.sum())
        with self._lock:
            if self._pending.pop(job.id, None) is None:
                return
            if self._is_over():
                self._wake_all()
            first = bool(truncated) and not (job.reports_truncation or self._told_of_truncation)
            self._told_of_truncation = self._told_of_truncation or first
            self._totals.truncated_texts += truncated
            self._totals.failed_texts += len(job.errors)
        if first:
            warn_of_truncation(job, truncated)
        end(job, result_s=self.clock())

    def out_of_memory(self, batch: Batch) -> None:
        """The executor's word: plan smaller batches for now."""
        with self._lock:
            self._scheduler.shrink(batch.computed_tokens // 2)
            limit = self._scheduler.max_batch_tokens
        logger.warning("out of memory: for now a batch holds at most %d tokens", limit)

    def __repr__(self) -> str:
        with self._lock:
            return (
                f"Loop(health={self._health!r}, pending_jobs={len(self._pending)}, "
                f"in_flight={self._crew.in_flight}, {self._scheduler!r})"
            )


def _forget_if_cancelled(found: weakref.ref[Loop], job_id: int, future: Future[Embeddings]) -> None:
    if future.cancelled() and (loop := found()) is not None:
        loop.forget(job_id)
