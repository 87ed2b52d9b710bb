"""`EngineCore`: the threads that serve one model, and the lock their state is under.

The tokenising thread keeps a few batches of token ids ahead. Each worker asks the scheduler for a
batch only when it can run one, so batches grow by themselves under load and a lone query runs at
once. A third kind of thread, the keeper, is always free: it ends calls at their deadlines and takes
out those that were cancelled. Planning happens under the lock, work outside it.

A caller's thread may be interrupted between any two steps, and a finalizer may run amid any of
them, under the lock too. So neither touches what the threads share but by leaving word in a deque:
a request that arrives, one that is cancelled. Only the loop's own threads, which nobody interrupts,
carry that out; whichever takes the lock next does. Leaving word comes first and waking second, and
whoever waits has woken somebody himself, so a caller that is interrupted in between keeps nobody
waiting. The lock may be taken again by its holder, since a finalizer may ask for figures.

The threads know this object and not the engine, so an engine nobody holds any more can be
collected while they finish what was accepted.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import EngineClosed, EngineFailed, MillpondError, QueueFull, TextFailed
from ..locks import Gate, fork_safe
from ..runner.base import ModelRunner
from ..scheduler.batch import Batch, Segment
from ..scheduler.request import Priority, Request
from ..scheduler.request_future import OwnThreads, this_thread
from ..scheduler.scheduler import Scheduler
from ..scheduler.token_chunk import TokenChunk
from ..stats import EngineStats, Totals
from . import process
from .delivery import Delivery
from .executor import BatchExecutor, BatchResult, DeviceSlot
from .inputs import InputProcessor
from .stats_hooks import StatsHooks
from .worker import Worker, WorkerPool

__all__ = ["EngineCore", "Health"]

Health = Literal["ready", "closing", "closed", "failed"]


Done = Sequence[tuple[Request, bool]]
"""Requests that are complete and out of `_pending`; and whether their truncation is logged."""
Ended = Iterable[tuple[Request, MillpondError | None]]
"""Requests that are out of `_pending` and to be ended; without an error, they were cancelled."""


# Queries up to so many, and up to this guess, are tokenised by their caller and not by the thread.
INLINE_TEXTS, INLINE_TOKENS = 16, 2048


MOST_ARRIVALS = 32  # looked through at every call; then the keeper takes them in


CLOSED_EARLY = "the engine was closed before the call was finished"


logger = logging.getLogger("millpond")


class EngineCore:
    """Accepts requests, runs them, and ends each exactly once.

    Whoever takes a request out of `_pending`, under the lock, is the one that ends its future.
    With a `cause` it has failed from the beginning.
    """

    def __init__(
        self,
        runners: Sequence[ModelRunner],
        inputs: InputProcessor,
        scheduler: Scheduler,
        *,
        hooks: StatsHooks | None = None,
        cause: BaseException | None = None,
        name: str = "millpond",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self._inputs = inputs
        self._runners = tuple(runners)
        self._hooks = StatsHooks() if hooks is None else hooks
        self._lock = fork_safe(threading.RLock())
        self._own_threads = OwnThreads(self._lock)  # held by futures, which do not hold this
        # Left by anybody at any time, taken out by our threads under the lock.
        self._cancelled: deque[int] = deque()  # ids of requests
        self._errands: deque[Callable[[], object]] = deque()  # for the keeper
        self._keeper_wakes = Gate()
        self._tokenizer_wakes = Gate()
        # Everything below is under the lock; callers change `_arrivals`, `_inline_request`
        # and, by single assignments, `_health`, `_cause` and `_abandons`.
        self._arrivals: deque[tuple[Request, TokenChunk | None]] = deque()
        self._inline_request: Request | None = None  # that a caller runs, if it has not ended
        self._health: Health = "ready" if cause is None else "failed"
        self._cause = cause
        self._abandons = False  # what is pending is to be ended, not run
        self._scheduler = scheduler
        self._pool = WorkerPool(runners, clock=clock)
        self._pending: dict[int, Request] = {}  # accepted and not ended
        self._wakes_at_s = float("inf")  # when the keeper looks at the deadlines
        self._is_kept = cause is None  # the keeper has not come to its end
        self._totals = Totals()
        self._told_of_truncation = False
        roles: dict[str, Callable[[], None]] = {
            f"batch-{number}": partial(self._run_batches, worker)
            for number, worker in enumerate(self._pool.workers)
        }
        roles |= {"tokenize": self._tokenize_all, "keeper": self._keep}
        self._threads = tuple(
            threading.Thread(target=self._guarded, args=(work,), name=f"{name}-{role}", daemon=True)
            for role, work in (roles.items() if cause is None else ())
        )

    def start(self) -> None:
        """Start the threads. Whoever is to stop them is known before, if an interrupt comes."""
        try:
            for thread in self._threads:
                thread.start()
            process.register(self, self._threads)
        except BaseException:  # an interrupt, or no more threads to be had
            self.close(drain=False, wait=False)
            raise

    # Callers. They may be interrupted anywhere.

    def submit(
        self, request: Request, *, wait: bool = True, block: bool = False, inline: bool = False
    ) -> None:
        """Accept a request, or raise.

        Where the queue is full, a request that may not `wait` raises `QueueFull`; one that may
        waits and `block` keeps the caller until it is admitted. With `inline` the caller is
        going to wait for the result, and its thread may run what it would wait for.
        """
        with self._lock:
            self._require_open()
            if not wait:  # before it is tokenised: a refusal is to cost little
                self._require_room_for(request)
        request.future.serve(self._own_threads, partial(_cancel, weakref.ref(self), request.id))
        try:
            chunk = process.while_running(partial(self._prepare, request, inline=inline))
            if request.remaining:
                self._accept(request, chunk, wait=wait, block=block)
            elif not request.future.done():
                request.end(result_s=self.clock())
        except BaseException:  # nobody will hold the future
            request.future.cancel()
            raise

    def _prepare(self, request: Request, *, inline: bool) -> TokenChunk | None:
        """A short query skips the tokenising thread: two thread switches less to wait for."""
        few = len(request) <= INLINE_TEXTS and request.waiting_tokens <= INLINE_TOKENS
        if request.priority is Priority.BULK or not few or not request.remaining:
            return None
        tokenized = self._inputs.tokenize(request, np.sort(request.order))
        for row, error in tokenized.refused.items():
            request.fail(row, error)
        if inline and tokenized.chunk is not None:
            self._run_inline(request, tokenized.chunk)
        return tokenized.chunk

    def _run_inline(self, request: Request, chunk: TokenChunk) -> None:
        """Run a request on its caller's thread, if it is alone, which saves two thread switches.

        The caller may be interrupted anywhere, so nothing that others depend on is in its hands:
        the text is in no queue and no other text waits for it. Several texts are left to the
        workers, which divide them, and deadlines to the keeper.
        """
        runner, one = self._runners[0], len(request) == 1 and request.deadline_s is None
        if not one or len(self._runners) > 1 or not runner.can_run_inline(int(chunk.lengths[0])):
            return
        with self._lock:
            self._require_open()
            other = self._inline_request
            if self._pending or self._arrivals or not self._pool.is_idle():
                return
            if other is not None and not other.future.done():
                return
            self._inline_request = request
        padded_length = runner.shapes[request.route].padded_length(int(chunk.lengths[0]))
        batch = Batch(request.route, (Segment(request, chunk, 0, 1),), padded_length)
        before = this_thread.works_for
        try:
            this_thread.works_for = self._own_threads
            executor = BatchExecutor(runner, DeviceSlot(), clock=self.clock)
            self._complete_inline(request, executor.run(batch))
        except Exception as error:
            self.ask_keeper(partial(self._fail, error))  # first, so that an interrupt loses nothing
            self._note_failure(error)
            raise engine_failure(error) from error
        finally:
            this_thread.works_for = before
            with self._lock:
                if self._inline_request is request:
                    self._inline_request = None

    def _complete_inline(self, request: Request, result: BatchResult) -> None:
        deliveries = [Delivery(one) for one in result.passes]
        for delivery in deliveries:
            delivery.deliver()
        with self._lock:
            for delivery in deliveries:
                if delivery.stats is not None:
                    self._totals.add(delivery.stats)
            warns = self._count_completed(request)
        for delivery in deliveries:
            if delivery.stats is not None:
                self._hooks.tell(delivery.stats)
        if warns:
            _warn_of_truncation(request)
        request.end(result_s=self.clock())

    def _accept(
        self, request: Request, chunk: TokenChunk | None, *, wait: bool, block: bool
    ) -> None:
        with self._lock:
            self._require_open()
            if not wait:
                self._require_room_for(request)
            must_wait = block and not self._has_room_for(request)
            self._arrivals.append((request, chunk))
            if chunk is None:
                self._tokenizer_wakes.open()
            else:
                self._pool.wake_one(queries=True, bulk=False)
            is_first = request.deadline_s is not None and request.deadline_s < self._wakes_at_s
            if is_first or len(self._arrivals) > MOST_ARRIVALS:
                self._keeper_wakes.open()
        if must_wait and not self._own_threads.include_this():
            request.future.admission.wait()

    def _require_room_for(self, request: Request) -> None:
        if not self._has_room_for(request):
            waiting_tokens = self._scheduler.waiting_tokens(request.priority)
            raise _queue_full(request, waiting_tokens + self._beside(request.priority))

    def _has_room_for(self, request: Request) -> bool:
        return self._scheduler.has_room_for(request, beside=self._beside(request.priority))

    def _beside(self, priority: Priority) -> int:
        """Tokens of a priority that the scheduler has not heard of, less those it is to forget."""
        arriving = [request for request, _ in self._arrivals if request.priority is priority]
        leaving = [request for request in self._leaving() if request.priority is priority]
        more = sum(request.waiting_tokens for request in arriving if request not in leaving)
        return more - sum(request.waiting_tokens for request in leaving if request.admitted)

    def _leaving(self) -> Sequence[Request]:
        """Requests that are cancelled and have not been dropped."""
        ids = set(self._cancelled)
        if not ids:
            return ()
        arriving = [request for request, _ in self._arrivals if request.id in ids]
        return [
            *arriving,
            *(self._pending[request_id] for request_id in ids & self._pending.keys()),
        ]

    def _require_open(self) -> None:
        if self._health == "failed":
            raise engine_failure(self._cause)
        if self._health != "ready":
            raise EngineClosed("the engine is closed; make a new one")

    def note_cancelled(self, request_id: int) -> None:
        """Have a request dropped. A finalizer may call it, amid anything."""
        self._cancelled.append(request_id)
        self._keeper_wakes.open()

    def ask_keeper(self, errand: Callable[[], object]) -> bool:
        """Have the keeper's thread do something, without the lock; False once the loop is over.

        A finalizer may call it, amid anything.
        """
        if self._is_kept:
            self._errands.append(errand)
            self._keeper_wakes.open()
        return self._is_kept

    def close(self, *, drain: bool, wait: bool = True) -> None:
        """Stop: finish what was accepted (`drain`), or fail all of it but what is running."""
        with self._lock:
            if self._health == "ready":
                self._health = "closing"
            if not drain:
                self._abandons = True
            self._wake_all()
        if wait and not self._own_threads.include_this():
            for thread in self._threads:
                thread.join()

    def require_may_wait(self) -> None:
        """Raise `EngineError` where the calling thread would wait for itself."""
        self._own_threads.require_another()

    @property
    def health(self) -> Health:
        """`closing` becomes `closed` when the last accepted text is through."""
        return self._health

    def stats(self) -> EngineStats:
        """Totals since the start, and what is waiting now."""
        with self._lock:
            prefixes = self._scheduler.prefixes
            leaving = sum(request.remaining for request in self._leaving())
            return self._totals.snapshot(
                leaving_texts=leaving,
                prefix_cache=None if prefixes is None else prefixes.stats,
                waiting_interactive_tokens=self._waiting_tokens(Priority.INTERACTIVE),
                waiting_bulk_tokens=self._waiting_tokens(Priority.BULK),
            )

    def _waiting_tokens(self, priority: Priority) -> int:
        if self._health == "failed":  # all that waited has ended
            return 0
        return self._scheduler.waiting_tokens(priority) + self._beside(priority)

    def abandon_in_child(self) -> None:
        """In a forked child: the threads stayed behind, so nothing pending here will ever run."""
        error = EngineFailed("the process was forked; this call goes on in the parent only")
        for request in self._take_all():
            request.future.fail_in_child(error)

    # All threads of the loop. Nobody interrupts them.

    def _guarded(self, work: Callable[[], None]) -> None:
        this_thread.works_for = self._own_threads
        try:
            work()
        except BaseException as error:  # nobody may wait for a thread that is gone
            self._fail(error)

    def _fail(self, cause: BaseException) -> None:
        """End everything, without asking those who may be why it failed."""
        self._note_failure(cause)
        with self._lock:
            pending = self._take_all()
            self._wake_all()
        for request in pending:
            request.finish(engine_failure(cause))

    def _note_failure(self, cause: BaseException) -> None:
        with self._lock:
            if self._health == "failed":
                return
            self._health, self._cause = "failed", cause
        logger.error("the engine failed: %s: %s", type(cause).__name__, cause, exc_info=cause)

    def _take_all(self) -> Sequence[Request]:
        """Every accepted request, which is now the caller's to end."""
        requests = self._pending | {request.id: request for request, _ in self._arrivals}
        self._pending = {}
        self._arrivals.clear()
        for request in requests.values():
            request.dead = True
        return list(requests.values())

    @property
    def _accepted(self) -> int:
        """Requests that have not ended."""
        return len(self._pending) + len(self._arrivals)

    def _is_over(self) -> bool:
        return self._health in ("closed", "failed") or (
            self._health == "closing" and not self._accepted
        )

    def _take_in(self, now_s: float) -> Ended:
        """Under the lock: what callers left word of, and what has passed its deadline.

        Returned are the requests that come to their end by it, to be ended without the lock.
        """
        while self._arrivals:
            request, chunk = self._arrivals[0]
            self._pending[request.id] = request
            self._scheduler.submit(request, now_s, chunk)
            self._arrivals.popleft()
        ended: list[tuple[Request, MillpondError | None]] = []
        while self._cancelled:
            found = self._pending.get(self._cancelled.popleft())
            if found is not None and self._drop(found):
                ended.append((found, None))
        for request in self._scheduler.expired(now_s):
            if self._drop(request):
                ended.append((request, request.deadline_error()))
        for request in list(self._pending.values()) if self._abandons else ():
            if self._drop(request):
                ended.append((request, EngineClosed(CLOSED_EARLY)))
        return ended

    def _drop(self, request: Request) -> bool:
        """Under the lock: plan nothing more of a request; whether it is the caller's to end."""
        if self._pending.pop(request.id, None) is None:
            return False
        self._totals.cancelled_texts += request.remaining
        self._scheduler.forget(request)
        return True

    def _end_all(self, ended: Ended) -> None:
        for request, error in ended:
            if error is None:
                request.future.cancel()  # if it was only abandoned
            request.finish(error)

    def _wake(self) -> None:
        """Under the lock: whoever has something to do now. That one wakes the next."""
        if self._is_over():
            self._wake_all()
            return
        self._pool.wake_one(
            queries=self._scheduler.has_ready(Priority.INTERACTIVE),
            bulk=self._scheduler.has_ready(Priority.BULK),
        )
        if self._scheduler.has_to_tokenize:
            self._tokenizer_wakes.open()

    def _wake_all(self) -> None:
        self._pool.wake_all()
        self._tokenizer_wakes.open()
        self._keeper_wakes.open()

    # The keeper.

    def _keep(self) -> None:
        while True:
            with self._lock:
                now_s = self.clock()
                ended = self._take_in(now_s)
                deadline_s = self._scheduler.next_deadline()
                self._wakes_at_s = float("inf") if deadline_s is None else deadline_s
                is_over = self._is_over()
                self._is_kept = not is_over
                self._wake()
            self._end_all(ended)
            del ended  # it would keep their vectors while this thread waits
            while self._errands:
                self._errands.popleft()()
            if is_over:
                return
            self._keeper_wakes.wait(None if deadline_s is None else max(0.0, deadline_s - now_s))

    # The tokenising thread.

    def _tokenize_all(self) -> None:
        while self._tokenize_next():
            pass  # a round of its own keeps nothing of the last request while it waits for the next

    def _tokenize_next(self) -> bool:
        claimed = self._next_to_tokenize()
        if claimed is None:
            return False
        request, rows = claimed
        try:
            tokenized = self._inputs.tokenize(request, rows)
        except MillpondError as error:  # the call cannot be accepted after all
            with self._lock:
                ours = self._drop(request)
                self._wake()
            if ours:
                request.finish(error)
            return True
        with self._lock:
            self._scheduler.refuse(request, tokenized.refused)
            if tokenized.chunk is not None:
                self._scheduler.ready(request, tokenized.chunk, self.clock())
            self._wake()
            done = self._take_done([request])
        self._finish(done)
        return True

    def _next_to_tokenize(self) -> tuple[Request, npt.NDArray[np.int64]] | None:
        while True:
            with self._lock:
                ended = self._take_in(self.clock())
                claimed = self._scheduler.next_to_tokenize()
                is_over = self._is_over()
                self._wake()
            self._end_all(ended)
            del ended
            if claimed is not None or is_over:
                return claimed
            self._tokenizer_wakes.wait()

    # The workers' threads.

    def _run_batches(self, worker: Worker) -> None:
        while (batch := self.next_batch(worker)) is not None:
            self.complete(worker.executor.run(batch))
            del batch  # it would keep its texts while this thread waits
        with self._lock:
            self._pool.working -= 1
            if self._health == "closing" and not self._pool.working:
                self._health = "closed"
            self._wake_all()

    def next_batch(self, worker: Worker) -> Batch | None:
        """Plan a batch for a worker, which waits for work; None when there will be no more."""
        while True:
            with self._lock:
                worker.looks()
                now_s = self.clock()
                ended = self._take_in(now_s)
                batch = self._plan(worker, now_s)
                if batch is not None:
                    worker.busy, worker.runs_bulk = True, batch.has_bulk
                elif not self._pending and self._pool.is_idle(but=worker):
                    self._scheduler.check_idle()
                is_over = self._is_over()
                self._wake()  # all that was ready may have joined texts in flight
                worker.idle = batch is None and not is_over
            self._end_all(ended)
            del ended
            if batch is not None or is_over:
                return batch
            worker.wait()

    def _plan(self, worker: Worker, now_s: float) -> Batch | None:
        if self._health == "failed" or not self._pool.can_start(worker):
            return None
        query_shares, bulk_shares = self._pool.shares(worker)
        return self._scheduler.next_batch(
            now_s,
            queries_only=worker.queries_only,
            query_shares=query_shares,
            bulk_shares=bulk_shares,
        )

    def complete(self, result: BatchResult) -> None:
        """Deliver what a batch gave, settle and count it, and finish the calls it completes."""
        deliveries = [Delivery(one) for one in result.passes]
        for delivery in deliveries:
            delivery.deliver()
        with self._lock:
            waiting = self._settle(result, deliveries)
            done = () if waiting else self._count(deliveries)
        if waiting:
            for delivery in deliveries:
                delivery.deliver_duplicates()
            with self._lock:
                done = self._count(deliveries)
        for delivery in deliveries:
            if delivery.stats is not None:
                self._hooks.tell(delivery.stats)
        self._finish(done)

    def _settle(self, result: BatchResult, deliveries: Sequence[Delivery]) -> bool:
        """Under the lock: tell the scheduler; whether other texts wait for those of the batch."""
        if result.was_too_large:
            self._scheduler.shrink(result.batch.computed_tokens // 2)
            limit = self._scheduler.max_batch_tokens
            logger.warning("out of memory: for now a batch holds at most %d tokens", limit)
        if result.was_split:
            self._scheduler.failed(result.batch)
        now_s = self.clock()
        for delivery in deliveries:
            delivery.duplicates = self._scheduler.completed(
                delivery.batch, now_s, keep=delivery.is_finite
            )
        self._scheduler.dropped(result.dropped, now_s)
        return any(delivery.duplicates for delivery in deliveries)

    def _count(self, deliveries: Sequence[Delivery]) -> Done:
        """Under the lock: count what was delivered; the requests that it completed."""
        for delivery in deliveries:
            if delivery.stats is not None:
                self._scheduler.record(delivery.batch, delivery.stats.forward_s)
                self._totals.add(delivery.stats)
        return self._take_done(
            [request for delivery in deliveries for request in delivery.requests]
        )

    def _take_done(self, requests: Iterable[Request]) -> Done:
        """Under the lock: those with nothing left to wait for, which are the caller's to finish."""
        done = []
        for request in requests:
            if request.remaining or self._pending.pop(request.id, None) is None:
                continue
            done.append((request, self._count_completed(request)))
        if done and self._is_over():
            self._wake_all()
        return done

    def _count_completed(self, request: Request) -> bool:
        """Under the lock: whether its truncation is to be logged, as the first of the engine."""
        truncated = int(request.truncated.sum())
        is_first = truncated > 0 and not (request.reports_truncation or self._told_of_truncation)
        self._told_of_truncation = self._told_of_truncation or is_first
        self._totals.truncated_texts += truncated
        failed = [error for error in request.errors.values() if isinstance(error, TextFailed)]
        self._totals.failed_texts += len(failed)
        return is_first

    def _finish(self, done: Done) -> None:
        for request, warns in done:
            if warns:
                _warn_of_truncation(request)
            request.finish(result_s=self.clock())

    def __repr__(self) -> str:
        with self._lock:
            return (
                f"EngineCore(health={self._health!r}, pending_requests={self._accepted}, "
                f"in_flight={self._pool.in_flight}, {self._scheduler!r})"
            )


def _cancel(found: weakref.ref[EngineCore], request_id: int) -> None:
    """By its id: a future that held its request would be a cycle, and keep the vectors for long."""
    if (loop := found()) is not None:
        loop.note_cancelled(request_id)


def engine_failure(cause: BaseException | None) -> EngineFailed:
    """The engine is lost, and all its calls with it."""
    error = EngineFailed(
        f"the engine failed and serves no more calls ({type(cause).__name__}: {cause}); "
        "make a new one"
    )
    error.__cause__ = cause
    return error


def _queue_full(request: Request, waiting_tokens: int) -> QueueFull:
    return QueueFull(
        f"{waiting_tokens} tokens are waiting in the {request.priority.value} queue and this call "
        f"brings about {request.waiting_tokens} more; try again later, or raise max_queue_tokens"
    )


def _warn_of_truncation(request: Request) -> None:
    logger.warning(
        "%d of %d texts were longer than the model reads and were truncated "
        "(logged once; every result says which of its texts were)",
        int(request.truncated.sum()),
        len(request),
    )
