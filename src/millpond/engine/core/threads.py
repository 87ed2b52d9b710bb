"""The threads of an `EngineCore`: for each worker, to tokenise texts of a priority, and one in the
background.

A worker's thread is the engine step. Those that tokenise keep a few batches of token ids ahead.
The background thread never runs a model, so it is always free: it ends calls at their deadlines
and those that were cancelled. None of them is ever interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

from ...errors import MillpondError
from ...locks import this_thread_pauses
from ...scheduler.request import Priority, Request
from ...scheduler.request_future import this_thread
from ...scheduler.scheduler import Claim
from ..inputs import InputProcessor, Tokenized
from ..tokenizer_process import TokenizerProcess
from .core import EngineCore
from .wakes import TokenizerWait
from .worker import Worker

__all__ = ["make_threads"]


def make_threads(
    core: EngineCore, processes: Sequence[TokenizerProcess] = ()
) -> Sequence[threading.Thread]:
    """The threads that serve `core`, not started. Each of `processes` has one of its own, through
    which texts of ingestion are tokenised."""
    roles: dict[str, Callable[[], None]] = {
        f"batch-{number}": partial(_run_batches, core, worker)
        for number, worker in enumerate(core.pool.workers)
    }
    wait = core.wakes.tokenizer_wait(Priority.INTERACTIVE)
    roles["tokenize-interactive"] = partial(
        _tokenize, core, Priority.INTERACTIVE, wait, core.inputs
    )
    for number, process in enumerate(processes or [None]):
        rests = process is not None and process.rests_beside_queries
        wait = core.wakes.tokenizer_wait(Priority.BULK, rests_beside_queries=rests)
        roles[f"tokenize-bulk-{number}"] = partial(_tokenize_bulk, core, wait, process)
    roles["background"] = partial(_run_background, core)
    return [
        threading.Thread(target=_guarded, args=(core, work), name=f"millpond-{role}", daemon=True)
        for role, work in roles.items()
    ]


def _guarded(core: EngineCore, work: Callable[[], None]) -> None:
    this_thread.works_for, this_thread.is_uninterrupted = core.own_threads, True
    try:
        work()
    except BaseException as error:  # no call may wait for a thread that is gone
        core.fail(error)
    finally:
        core.end_thread()


def _run_batches(core: EngineCore, worker: Worker) -> None:
    while (batch := core.next_batch(worker)) is not None:
        core.complete(worker.executor.run(batch, core.replacement))
        worker.executor.runner.delivered()
        del batch  # it would keep its texts while this thread waits
    core.end_worker()


def _tokenize_bulk(core: EngineCore, wait: TokenizerWait, process: TokenizerProcess | None) -> None:
    this_thread_pauses.call = core.wakes.pause_for_queries
    if process is None:
        _tokenize(core, Priority.BULK, wait, core.inputs)
        return
    try:
        process.start()
        _tokenize(core, Priority.BULK, wait, core.inputs.calling(process.call))
    finally:
        process.close()


def _tokenize(
    core: EngineCore, priority: Priority, wait: TokenizerWait, inputs: InputProcessor
) -> None:
    while claims := _next_to_tokenize(core, priority, wait):
        _tokenize_claimed(core, claims, inputs.tokenize_all(claims))
        del claims  # they would keep their requests while this thread waits


def _next_to_tokenize(core: EngineCore, priority: Priority, wait: TokenizerWait) -> Sequence[Claim]:
    """Texts to tokenise, waited for; none when there will be no more."""
    while True:
        with core.lock:
            now_s = core.clock()
            ended = core.pending.update(now_s)
            may_claim = core.wakes.may_tokenize(wait, now_s)
            claims = core.scheduler.next_to_tokenize(priority) if may_claim else ()
            is_over = core.wake()
            if not claims:
                wait.found_none()
        core.end(ended)
        del ended
        if claims or is_over:
            return claims
        wait.wait()


def _tokenize_claimed(
    core: EngineCore, claims: Sequence[Claim], tokenized: Sequence[Tokenized | MillpondError]
) -> None:
    ended: list[tuple[Request, MillpondError]] = []
    with core.lock:
        now_s = core.clock()
        for (request, _), found in zip(claims, tokenized, strict=True):
            if isinstance(found, MillpondError):  # the call cannot be accepted after all
                if core.pending.drop(request):
                    ended.append((request, found))
                continue
            if found.refused:
                core.scheduler.refuse(request, found.refused)
            if found.chunk is not None:
                core.scheduler.ready(request, found.chunk, now_s)
        core.wake()
        completed = core.take_completed([request for request, _ in claims])
    core.end(ended)
    core.finish(completed)


def _run_background(core: EngineCore) -> None:
    while True:
        with core.lock:
            now_s = core.clock()
            ended = core.pending.update(now_s)
            deadline_s = core.scheduler.next_deadline()
            is_over = core.wake()
            core.background.look(deadline_s, is_over=is_over)
        core.end(ended)
        del ended  # it would keep their vectors while this thread waits
        core.background.run_tasks()
        if is_over:
            return
        core.background.wait(None if deadline_s is None else deadline_s - now_s)
