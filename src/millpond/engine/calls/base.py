"""`Calls`: what a call's own thread does, whatever is asked of the model: it sends, and it waits.

That thread may be interrupted between any two steps. So it changes what others read by single
appends, and wakes a thread after that; only the engine's own threads, which are never interrupted,
move a request any further. A short call that finds the engine idle runs here whole, and then no
other text depends on its own.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from ...errors import DeadlineExceeded, EngineClosed
from ...outputs import CallResult
from ...scheduler.batch import Batch
from ...scheduler.request import Priority, Request
from ...scheduler.request_future import this_thread
from ...scheduler.token_chunk import TokenChunk
from .. import process
from ..core.core import EngineCore
from ..core.executor import BatchExecutor, DeviceSlot
from ..inputs import InputProcessor
from ..instance import ModelInstance
from ..params.embed import EmbedParams, TextsInput
from .loop_results import awaitable

__all__ = ["INLINE_TEXTS", "INLINE_TOKENS", "Calls", "while_running"]

Result = TypeVar("Result")

# Calls of at most N texts and tokens, by a guess, are tokenised by their caller, not the thread.
INLINE_TEXTS, INLINE_TOKENS = 16, 2048


# Up to this number of calls at a time, each is quickest on its own.
FEW_QUERIES = 3


class Waitable(Protocol):
    """A request, or what stands for several."""

    @property
    def future(self) -> Any: ...

    @property
    def own_result(self) -> CallResult | None:
        """What its caller's thread has computed itself, which then need not wait."""

    def deadline_error(self) -> DeadlineExceeded:
        """Its time is over."""


class Calls:
    """Sends requests to a model instance that is held, and waits for their results."""

    _instance: ModelInstance
    _release: weakref.finalize[Any, Any]  # alive as long as the instance is held

    @property
    def _inputs(self) -> InputProcessor:
        return self._instance.inputs

    def _send_texts(
        self,
        texts: TextsInput,
        params: EmbedParams,
        *,
        call: str = "embed",
        strict: bool = False,
        several: bool = False,
        **how: bool,
    ) -> tuple[Request, bool]:
        """Send what a call of that name makes of texts, and say whether it is for a single one.

        With `several` a string is no text.
        """
        core = self._held_core()
        request, single = core.inputs.request(
            texts, params, now_s=core.clock(), strict=strict, several=several, call=call
        )
        self._send(core, request, **how)
        return request, single

    def _held_core(self) -> EngineCore:
        if not self._release.alive:
            raise EngineClosed("the engine is closed; make a new one")
        return self._instance.own_core or self._instance.core

    def _send(
        self,
        core: EngineCore,
        request: Request,
        *,
        wait: bool = True,
        block: bool = False,
        inline: bool = False,
    ) -> None:
        """Have the request accepted, or raise: what it is refused for, or its failure.

        Where the queue is full, a request that may not `wait` raises `QueueFull`; one that may
        waits and `block` keeps the caller until it is admitted. With `inline` the caller is going
        to wait for the result, and its thread may run what it would wait for.
        """
        core.require_open()
        if not wait:  # before it is tokenised: a refusal is to cost little
            with core.lock:
                core.pending.require_room_for(request)
        chunk = None
        if _is_quickest_here(core, request, inline=inline):
            chunk = while_running(partial(_tokenize_and_run, core, request, inline=inline))
        if request.remaining:
            _accept(core, request, chunk, wait=wait, block=block)
        else:
            request.own_result = request.result(core.clock())

    def _wait(self, request: Waitable, timeout: float | None) -> Any:
        if request.own_result is not None:
            return request.own_result
        try:
            if not request.future.done():
                self._instance.core.own_threads.require_another()
            return request.future.result(timeout)
        except FutureTimeout:  # an error of the request may be one too
            if request.future.cancel():
                raise request.deadline_error() from None
            return request.future.result()
        except BaseException:
            request.future.cancel()
            raise

    async def _await(self, request: Waitable, timeout: float | None) -> Any:
        try:
            if not request.future.done():
                self._instance.core.own_threads.require_another()
            waiting = awaitable(request.future)
            if timeout is not None:
                done, _ = await asyncio.wait({waiting}, timeout=float(timeout))
                if not done and request.future.cancel():
                    raise request.deadline_error()
            return await waiting
        except BaseException:
            request.future.cancel()
            raise


def while_running(work: Callable[[], Result]) -> Result:
    """Do what runs native code on this thread, which may be a daemon.

    The process's exit waits for it, and from then on it raises `EngineClosed`.
    """
    held = threading.Lock()
    process.at_work.add(held)
    try:
        with held:
            if process.ends.is_set():
                raise EngineClosed("the process is ending")
            return work()
    finally:
        process.at_work.discard(held)


def _is_quickest_here(core: EngineCore, request: Request, *, inline: bool) -> bool:
    """A short call skips the tokenising thread: two thread switches less to wait for.

    Where others wait it does not: tokenised together, each takes a fraction of the time.
    """
    if not request.remaining or len(request.texts) > INLINE_TEXTS:
        return False
    if request.waiting_tokens > INLINE_TOKENS:
        return False
    if request.priority is Priority.BULK:
        return inline and core.is_idle
    return core.pending.queries <= FEW_QUERIES


def _tokenize_and_run(core: EngineCore, request: Request, *, inline: bool) -> TokenChunk | None:
    """Tokenise a request here and, with `inline`, run it if it may: the texts that are left."""
    tokenized = core.inputs.tokenize(request, np.sort(request.order))
    for row, error in tokenized.refused.items():
        request.fail(row, error)
    chunk = tokenized.chunk
    if inline and chunk is not None and request.deadline_s is None:  # not kept here
        scheduler = core.scheduler
        most = min(scheduler.undivided_tokens, scheduler.max_batch_tokens)
        shape = scheduler.shapes[request.route]
        batch = Batch.of_request(request, chunk, shape, most_tokens=most)
        if batch is not None and len(core.runners) == 1:
            _run(core, request, batch)
    return chunk


def _run(core: EngineCore, request: Request, batch: Batch) -> None:
    """Run a request on this thread if it may, which saves two thread switches.

    It may be interrupted anywhere, so nothing that others depend on is in its hands: its texts
    are in no queue and no other text waits for them.
    """
    runner, before = core.runners[0], this_thread.works_for
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
        core.release_inline()


def _accept(
    core: EngineCore, request: Request, chunk: TokenChunk | None, *, wait: bool, block: bool
) -> None:
    request.future.serve(core.own_threads, partial(_cancel, weakref.ref(core), request.id))
    try:
        with core.lock:
            core.require_open()
            if not wait:
                core.pending.require_room_for(request)
            must_wait = block and not core.pending.has_room_for(request)
            core.pending.add(request, chunk)
            core.wakes.arrived(request, is_tokenized=chunk is not None)
        if must_wait and not core.own_threads.include_this():
            request.future.admission.wait()
    except BaseException:  # no caller will have the future
        request.future.cancel()
        raise


def _cancel(found: weakref.ref[EngineCore], request_id: int) -> None:
    """By its id: a future that held its request would be a cycle, and keep the vectors for long."""
    if (core := found()) is not None:
        core.cancel(request_id)
