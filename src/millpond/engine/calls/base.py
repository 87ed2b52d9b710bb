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
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from ...config import require_bool
from ...errors import DeadlineExceeded, EngineClosed
from ...locks import Gate
from ...outputs import CallResult
from ...scheduler.batch import Batch
from ...scheduler.request import Priority, Request
from ...scheduler.request_future import this_thread
from ...scheduler.token_chunk import TokenChunk
from ...stats import ProgressHook
from .. import process
from ..core.core import EngineCore
from ..core.executor import BatchExecutor, DeviceSlot
from ..inputs import InputProcessor
from ..instance import ModelInstance
from ..params.embed import EmbedParams, TextInput, TextsInput
from .loop_results import awaitable
from .progress import NO_HOOK, progress_hook
from .stream import EmbeddingStream, require_stream_options

__all__ = ["INLINE_TEXTS", "INLINE_TOKENS", "Calls", "checked", "while_running"]

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
        return self._instance.core

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

    # Calls for texts: what the model gives of them, and whether it is of a single one.

    def _run(
        self,
        texts: TextsInput,
        params: EmbedParams,
        progress: bool | ProgressHook,
        *,
        call: str = "embed",
    ) -> tuple[Any, bool]:
        """Waited for. With `progress` there is a bar, or a function is called; raises the errors of
        the texts."""
        with NO_HOOK if progress is False else progress_hook(texts, progress) as hook:
            params = params if hook is None else _reporting(params, hook, progress)
            request, single = self._send_texts(texts, params, call=call, strict=True, inline=True)
            return checked(self._wait(request, params.timeout)), single

    async def _arun(
        self,
        texts: TextsInput,
        params: EmbedParams,
        progress: bool | ProgressHook,
        *,
        call: str = "embed",
    ) -> tuple[Any, bool]:
        with progress_hook(texts, progress) as hook:
            params = params if hook is None else _reporting(params, hook, progress)
            request, single = self._send_texts(texts, params, call=call, strict=True)
            return checked(await self._await(request, params.timeout)), single

    def _submit(
        self, texts: TextsInput, params: EmbedParams, wait: bool, *, call: str = "embed"
    ) -> Future[Any]:
        require_bool("wait", wait)
        request, _ = self._send_texts(texts, params, call=call, wait=wait, block=wait)
        return request.future

    def _stream(
        self,
        texts: Iterable[TextInput],
        params: EmbedParams,
        chunk_size: int,
        progress: ProgressHook | None,
        *,
        call: str = "embed",
    ) -> EmbeddingStream:
        params.require(self._instance.spec, f"{call}_iter")
        require_stream_options(texts, chunk_size, progress, params.output_dtype)
        if progress is not None:
            params = _reporting(params, progress, progress)
        params.validate(self._instance.spec)

        def submit(chunk: list[TextInput]) -> Request:
            return self._send_texts(chunk, params, call=call, several=True)[0]

        wait = partial(self._wait, timeout=params.timeout)
        return EmbeddingStream(iter(texts), chunk_size=chunk_size, submit=submit, wait=wait)

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


def checked(result: Any) -> Any:
    """Raises the errors of its texts."""
    if result.errors:
        result.raise_for_errors()
    return result


def _reporting(params: EmbedParams, hook: ProgressHook, asked: object) -> EmbedParams:
    """With a function to call, which is the caller's own or a bar's."""
    return replace(params, progress=hook, reports_truncation=hook is asked)


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
    rows = request.order if len(request.order) == 1 else np.sort(request.order)
    tokenized = core.inputs.tokenize(request, rows)
    for row, error in tokenized.refused.items():
        request.fail(row, error)
    chunk = tokenized.chunk
    if inline and chunk is not None and request.deadline_s is None:  # not kept here
        scheduler = core.scheduler
        most = min(scheduler.undivided_tokens, scheduler.max_batch_tokens)
        shape = scheduler.shapes[request.route]
        batch = Batch.of_request(request, chunk, shape, most_tokens=most)
        if batch is not None and len(core.runners) == 1:
            _run_here(core, request, batch)
    return chunk


def _run_here(core: EngineCore, request: Request, batch: Batch) -> None:
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
    future = request.future
    future.serve(core.own_threads, partial(_cancel, weakref.ref(core), request.id))
    try:
        with core.lock:
            core.require_open()
            if not wait:
                core.pending.require_room_for(request)
            if block and not core.pending.has_room_for(request):
                future.admission = Gate()
            core.pending.add(request, chunk)
            core.wakes.arrived(request, is_tokenized=chunk is not None)
        if future.admission is not None and not core.own_threads.include_this():
            future.admission.wait()
    except BaseException:  # no caller will have the future
        future.cancel()
        raise


def _cancel(found: weakref.ref[EngineCore], request_id: int) -> None:
    """By its id: a future that held its request would be a cycle, and keep the vectors for long."""
    if (core := found()) is not None:
        core.cancel(request_id)
