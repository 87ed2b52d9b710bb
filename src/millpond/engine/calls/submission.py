"""`Submission`: what a call's own thread does, from a request until it is accepted, or has run.

That thread may be interrupted between any two steps. So it changes what others read by single
appends, and wakes a thread after that; only the engine's own threads, which are never interrupted,
move a request any further. A short call that finds the engine idle runs here whole, and then no
other text depends on its own.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...runner.base import ModelRunner
from ...scheduler.batch import Batch
from ...scheduler.request import Priority, Request
from ...scheduler.request_future import this_thread
from ...scheduler.token_chunk import TokenChunk
from .. import process
from ..core.core import EngineCore
from ..core.executor import BatchExecutor, DeviceSlot

__all__ = ["INLINE_TEXTS", "INLINE_TOKENS", "Submission"]

# Calls of at most N texts and tokens, by a guess, are tokenised by their caller, not the thread.
INLINE_TEXTS, INLINE_TOKENS = 16, 2048


# Up to this number of calls at a time, each is quickest on its own.
FEW_QUERIES = 3


@dataclass(frozen=True, slots=True)
class Submission:
    """One request that is handed to an engine.

    Where the queue is full, a request that may not `wait` raises `QueueFull`; one that may waits
    and `block` keeps the caller until it is admitted. With `inline` the caller is going to wait
    for the result, and its thread may run what it would wait for.
    """

    core: EngineCore
    request: Request
    wait: bool = True
    block: bool = False
    inline: bool = False

    def run(self) -> None:
        """Have the request accepted, or raise: what it is refused for, or its failure."""
        core, request = self.core, self.request
        core.require_open()
        if not self.wait:  # before it is tokenised: a refusal is to cost little
            with core.lock:
                core.pending.require_room_for(request)
        cancel = partial(_cancel, weakref.ref(core), request.id)
        request.future.serve(core.own_threads, cancel)
        try:
            chunk = process.while_running(self._prepare) if self._is_quickest_here() else None
            if request.remaining:
                self._accept(chunk)
            elif not request.future.done():
                request.end(result_s=core.clock())
        except BaseException:  # no caller will have the future
            request.future.cancel()
            raise

    def _is_quickest_here(self) -> bool:
        """A short call skips the tokenising thread: two thread switches less to wait for.

        Where others wait it does not: tokenised together, each takes a fraction of the time.
        """
        core, request = self.core, self.request
        if request.priority is Priority.BULK and not (self.inline and core.is_idle):
            return False
        few = len(request.texts) <= INLINE_TEXTS and request.waiting_tokens <= INLINE_TOKENS
        return few and request.remaining > 0 and core.pending.queries <= FEW_QUERIES

    def _prepare(self) -> TokenChunk | None:
        core, request = self.core, self.request
        tokenized = core.inputs.tokenize(request, np.sort(request.order))
        for row, error in tokenized.refused.items():
            request.fail(row, error)
        chunk = tokenized.chunk
        if self.inline and chunk is not None and request.deadline_s is None:  # not kept here
            batch = core.scheduler.whole_batch(request, chunk)
            if batch is not None and len(core.runners) == 1:
                self._run_inline(batch, core.runners[0])
        return chunk

    def _run_inline(self, batch: Batch, runner: ModelRunner) -> None:
        """Run the request on this thread if it may, which saves two thread switches.

        It may be interrupted anywhere, so nothing that others depend on is in its hands: its texts
        are in no queue and no other text waits for them.
        """
        core, request, before = self.core, self.request, this_thread.works_for
        if not runner.can_run_inline(batch) or not core.claim_inline(request):
            return
        try:
            this_thread.works_for = core.own_threads
            executor = BatchExecutor(runner, DeviceSlot(), clock=core.clock)
            core.complete_inline(request, executor.run(batch))
        except Exception as error:
            raise core.fail_from_caller(error) from error
        finally:
            this_thread.works_for = before
            core.release_inline(request)

    def _accept(self, chunk: TokenChunk | None) -> None:
        core, request = self.core, self.request
        with core.lock:
            core.require_open()
            if not self.wait:
                core.pending.require_room_for(request)
            must_wait = self.block and not core.pending.has_room_for(request)
            core.pending.add(request, chunk)
            core.wakes.arrived(request, is_tokenized=chunk is not None)
        if must_wait and not core.own_threads.include_this():
            request.future.admission.wait()


def _cancel(found: weakref.ref[EngineCore], request_id: int) -> None:
    """By its id: a future that held its request would be a cycle, and keep the vectors for long."""
    if (core := found()) is not None:
        core.cancel(request_id)
