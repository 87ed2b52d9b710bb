"""`EngineCore`: what the threads that serve one model share, and the lock it is under.

Each worker asks for a batch only when it can run one, so batches grow by themselves under load and
a lone query runs at once. Planning happens under the lock, work outside it. What each thread does
round by round is in `threads`, and what a caller does in `calls.base`.

A caller's thread may be interrupted between any two steps, and a finalizer may run amid any of
them, under the lock too. So neither changes what the threads share but by appending to a deque: a
request, the id of a cancelled one, a task. Only the engine's own threads, which are never
interrupted, act on it; whichever takes the lock next does. The append comes first and waking
second, and a caller that waits has woken a thread itself, so an interrupt in between delays no
other call.
The lock may be taken again by its holder, since a finalizer may ask for figures.

The threads know this object and not the engine, so an engine without references can be
collected while they finish what was accepted.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

from ...errors import EngineClosed, EngineFailed
from ...locks import fork_safe
from ...runner.base import ModelRunner
from ...scheduler.batch import Batch
from ...scheduler.request import Priority, Request
from ...scheduler.request_future import OwnThreads, ending_several
from ...scheduler.scheduler import Scheduler
from ...stats import EngineStats, PrefixCacheStats, StatsHooks
from .. import process
from ..inputs import InputProcessor
from .background import BackgroundTasks
from .delivery import Counts, Delivery, delivered
from .executor import BatchResult, Place
from .pending import Ended, PendingRequests
from .wakes import Wakes
from .worker import Worker, WorkerPool

__all__ = ["EngineCore", "Health"]

Health = Literal["ready", "closing", "closed", "failed"]

logger = logging.getLogger("millpond")


class EngineCore:
    """Runs requests and ends each exactly once. With a `cause` it has failed from the beginning."""

    def __init__(
        self,
        runners: Sequence[ModelRunner],
        inputs: InputProcessor,
        scheduler: Scheduler,
        *,
        hooks: StatsHooks,
        cause: BaseException | None = None,
        closes_runners: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.inputs = inputs
        self.runners = tuple(runners)
        self._closes_runners = closes_runners  # whether they are its own
        self.lock = fork_safe(threading.RLock())
        self.own_threads = OwnThreads(self.lock)  # held by futures, which do not hold this
        self.background = BackgroundTasks(is_running=cause is None)
        # Everything below is under the lock; callers change `_inline_request` and, by single
        # assignments, `health`, `_cause` and `pending.abandons`.
        # What a caller runs. Weakly: it may be interrupted before it says that it is through.
        self._inline_request: weakref.ref[Request] | None = None
        self.health: Health = "ready" if cause is None else "failed"
        """`closing` becomes `closed` when the last accepted text is through."""
        self._cause = cause
        self.scheduler = scheduler
        self.pending = PendingRequests(scheduler)
        self.pool = WorkerPool(runners, clock=clock)
        self.wakes = Wakes(scheduler, self.pending, self.pool, self.background)
        self._counts = Counts(hooks)
        self._threads: Sequence[threading.Thread] = ()
        self._running_threads = 0

    def start(self, threads: Sequence[threading.Thread]) -> None:
        """Start the threads that serve it. They are stopped by `close`."""
        self._threads = threads  # before one of them runs, if an interrupt comes
        self._running_threads = len(threads)
        for runner in self.runners:
            runner.tell_when_lost(partial(_note_lost, weakref.ref(self), weakref.ref(runner)))
            runner.look_for_queries(partial(_has_waiting_queries, weakref.ref(self.pending)))
        try:
            for thread in self._threads:
                thread.start()
            process.register(self, self._threads)
        except BaseException:  # an interrupt, or no more threads to be had
            self.close(drain=False, wait=False)
            raise

    # Called by any thread, which may be interrupted anywhere.

    def require_open(self) -> None:
        """Raise `EngineFailed` or `EngineClosed` where no request is accepted."""
        if self.health == "failed":
            raise EngineFailed.by(self._cause)
        if self.health != "ready":
            raise EngineClosed("the engine is closed; make a new one")

    def cancel(self, request_id: int) -> None:
        """Have a request dropped. A finalizer may call it, amid anything."""
        self.pending.cancel(request_id)
        self.background.wake()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is pending and no worker runs a batch. Without the lock, it is a hint."""
        return not (self.pending.by_id or self.pending.arrivals or self.pool.in_flight)

    def claim_inline(self, request: Request) -> bool:
        """Whether a caller may run its own request, because nothing else is pending or runs."""
        with self.lock:
            other = self._inline_request
            is_free = other is None or other() is None
            if not is_free or self.health != "ready" or not self.is_idle:
                return False
            self._inline_request = weakref.ref(request)
            return True

    def release_inline(self) -> None:
        """The caller that runs its own request is through with it."""
        self._inline_request = None

    def complete_inline(self, request: Request, result: BatchResult) -> None:
        """`complete`, for a request that its caller has run."""
        deliveries = delivered(result)
        with self.lock:
            self._counts.add(deliveries)
            self._counts.add_request(request)
        self._counts.call_hooks(deliveries)
        self._counts.warn_of_truncation(request)

    def fail_from_caller(self, cause: Exception) -> EngineFailed:
        """A caller's own batch showed that no other can run; what it is to raise."""
        self.background.add(partial(self.fail, cause))  # first: an interrupt loses nothing
        self._note_failure(cause)
        return EngineFailed.by(cause)

    def close(self, *, drain: bool, wait: bool = True) -> None:
        """Stop: finish what was accepted (`drain`), or fail all of it but what is running."""
        with self.lock:
            if self.health == "ready":
                self.health = "closing"
            if not drain:
                self.pending.abandons = True
            self.wakes.all()
        if wait and not self.own_threads.include_this():
            for thread in self._threads:
                thread.join()

    def stats(self) -> EngineStats:
        """Totals since the start, and what is waiting now."""
        with self.lock:
            waits = self.health != "failed"  # else all that waited has ended
            return self._counts.stats(
                {p: self.pending.waiting_tokens(p) if waits else 0 for p in Priority},
                cancelled_texts=self.pending.cancelled_texts,
                replicas=self.pool.runners,
                prefix_cache=PrefixCacheStats.sum_of(
                    [cache.stats for cache in self.scheduler.caches]
                ),
            )

    def abandon_in_child(self) -> None:
        """In a forked child: the threads stayed behind, so nothing pending here will ever run."""
        error = EngineFailed("the process was forked; this call goes on in the parent only")
        for request in self.pending.take_all():
            request.future.fail_in_child(error)

    # The engine step. From here on no thread is interrupted.

    def lose_idle(self, runner: ModelRunner, error: Exception) -> None:
        """A runner was lost while it ran nothing."""
        if self.replacement(runner, error) is None:
            self.fail(error)

    def replacement(self, lost: ModelRunner, error: Exception) -> Place | None:
        """A runner is lost: it is given nothing more. Where its batches may run instead, if
        another one is left."""
        with self.lock:
            is_new = self.pool.retire(lost)
            if is_new:
                self.scheduler.lose_replica([each is lost for each in self.runners].index(True))
            left = self.pool.runners
            place = self.pool.place()
            self.wake()
        if is_new and left:
            lost.close(wait=False)
            logger.error("a replica of the model is lost, %d left: %s", left, error)
        return place

    def end_thread(self) -> None:
        """A thread of the engine ends. With the last of them end the runners that are its own."""
        with self.lock:
            self._running_threads -= 1
            is_last = not self._running_threads
        if is_last and self._closes_runners:
            for runner in self.runners:
                runner.close()

    def end_worker(self) -> None:
        """A worker has seen its last batch."""
        with self.lock:
            self.pool.running_threads -= 1
            if self.health == "closing" and not self.pool.running_threads:
                self.health = "closed"
            self.wakes.all()

    def next_batch(self, worker: Worker) -> Batch | None:
        """The next batch for a worker, which waits for work; None when there will be no more."""
        was_woken = False
        while True:
            with self.lock:
                self.pool.look(worker)
                now_s = self.clock()
                ended = self.pending.update(now_s)
                batch = self._plan(worker, now_s)
                # All that was ready may have joined texts in flight. What is left to another
                # replica, its workers were told by the thread that woke this one.
                is_left = was_woken and batch is None and self.scheduler.holds_parts
                is_over = self.wake(workers=not is_left) or worker.retired
                worker.idle = batch is None and not is_over
            self.end(ended)
            del ended
            if batch is not None or is_over:
                return batch
            worker.wait()
            was_woken = True

    def _plan(self, worker: Worker, now_s: float) -> Batch | None:
        if self.health == "failed" or worker.retired:
            return None
        batch = None
        if self.pool.can_start(worker):
            query_shares, bulk_shares = self.pool.shares(worker)
            batch = self.scheduler.next_batch(
                now_s,
                priorities=worker.priorities,
                query_shares=query_shares,
                bulk_shares=bulk_shares,
                replica=worker.replica,
            )
        if batch is not None:
            self.pool.start(worker, has_bulk=batch.has_bulk)
        elif self.is_idle:
            self.scheduler.check_idle()
        return batch

    def complete(self, result: BatchResult) -> None:
        """Deliver what a batch gave, settle and count it, and finish the calls it completes."""
        deliveries = delivered(result)
        with self.lock:
            waiting = self._settle(result, deliveries)
            done = () if waiting else self._take_done(deliveries)
        if waiting:
            for delivery in waiting:
                delivery.deliver_duplicates()
            with self.lock:
                done = self._take_done(deliveries)
        self._counts.call_hooks(deliveries)
        self.finish(done)

    def _settle(self, result: BatchResult, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Under the lock: tell the scheduler; those that other texts wait for are returned."""
        if result.was_too_large:
            self.scheduler.shrink(result.batch.computed_tokens // 2)
            limit = self.scheduler.max_batch_tokens
            logger.warning("out of memory: for now a batch holds at most %d tokens", limit)
        if result.was_split:
            self.scheduler.failed(result.batch)
        now_s = self.clock()
        for delivery in deliveries:
            delivery.duplicates = self.scheduler.completed(
                delivery.batch, now_s, keep=delivery.is_finite
            )
        if result.dropped:
            self.scheduler.dropped(result.dropped, now_s)
        return [delivery for delivery in deliveries if delivery.duplicates]

    def _take_done(self, deliveries: Sequence[Delivery]) -> Sequence[Request]:
        """Under the lock: count what was delivered; the requests that it completed."""
        self._counts.add(deliveries)
        for delivery in deliveries:
            if delivery.stats is not None:
                self.scheduler.record(delivery.batch, delivery.stats.forward_s)
        return self.take_completed(
            [request for delivery in deliveries for request in delivery.requests]
        )

    def take_completed(self, requests: Iterable[Request]) -> Sequence[Request]:
        """Under the lock: those that are the caller's to finish."""
        completed = self.pending.take_completed(requests)
        for request in completed:
            self._counts.add_request(request)
            self.wakes.ended(request)
        if completed and self._is_over():
            self.wakes.all()
        return completed

    def finish(self, completed: Sequence[Request]) -> None:
        result_s = self.clock()
        with ending_several():
            for request in completed:
                self._counts.warn_of_truncation(request)
                request.finish(result_s=result_s)

    # All threads of the engine.

    def end(self, ended: Ended) -> None:
        for request, error in ended:
            if error is None:
                request.future.cancel()  # if it was only abandoned
            request.finish(error)

    def wake(self, *, workers: bool = True) -> bool:
        """Under the lock: wake who has something to do now, and who wakes the next.

        Whether the engine is over; then all threads are woken, to end.
        """
        is_over = self._is_over()
        if is_over:
            self.wakes.all()
        else:
            self.wakes.ready(workers=workers)
        return is_over

    def _is_over(self) -> bool:
        if self.health == "ready":
            return False
        return self.health != "closing" or not self.pending

    def fail(self, cause: BaseException) -> None:
        """End everything, without asking those who may be why it failed."""
        self._note_failure(cause)
        with self.lock:
            pending = self.pending.take_all()
            self.wakes.all()
        for request in pending:
            request.finish(EngineFailed.by(cause))

    def _note_failure(self, cause: BaseException) -> None:
        with self.lock:
            if self.health == "failed":
                return
            self.health, self._cause = "failed", cause
        logger.error("the engine failed: %s: %s", type(cause).__name__, cause, exc_info=cause)

    def __repr__(self) -> str:
        with self.lock:
            return (
                f"EngineCore(health={self.health!r}, pending_requests={len(self.pending)}, "
                f"in_flight={self.pool.in_flight}, {self.scheduler!r})"
            )


def _has_waiting_queries(pending: weakref.ref[PendingRequests]) -> bool:
    found = pending()
    return found is not None and found.has_waiting_queries


def _note_lost(
    core: weakref.ref[EngineCore], runner: weakref.ref[ModelRunner], error: Exception
) -> None:
    """Any thread: a runner has ended by itself. It holds neither of them."""
    found, lost = core(), runner()
    if found is not None and lost is not None:
        found.background.add(partial(found.lose_idle, lost, error))
