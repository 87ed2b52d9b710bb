"""The threads of an `EngineCore`: one for each worker, one that tokenises, one in the background.

A worker's thread is the engine step. The tokenising thread keeps a few batches of token ids ahead.
The background thread never runs a model, so it is always free: it ends calls at their deadlines
and those that were cancelled. None of them is ever interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ..errors import MillpondError
from ..scheduler.request import Request
from ..scheduler.request_future import this_thread
from .core import EngineCore
from .worker import Worker

__all__ = ["make_threads"]


def make_threads(core: EngineCore) -> Sequence[threading.Thread]:
    """The threads that serve `core`, not started."""
    roles: dict[str, Callable[[], None]] = {
        f"batch-{number}": partial(_run_batches, core, worker)
        for number, worker in enumerate(core.pool.workers)
    }
    roles |= {"tokenize": partial(_tokenize, core), "background": partial(_run_background, core)}
    return [
        threading.Thread(target=_guarded, args=(core, work), name=f"millpond-{role}", daemon=True)
        for role, work in roles.items()
    ]


def _guarded(core: EngineCore, work: Callable[[], None]) -> None:
    this_thread.works_for = core.own_threads
    try:
        work()
    except BaseException as error:  # no call may wait for a thread that is gone
        core.fail(error)


def _run_batches(core: EngineCore, worker: Worker) -> None:
    while (batch := core.next_batch(worker)) is not None:
        core.complete(worker.executor.run(batch))
        del batch  # it would keep its texts while this thread waits
    core.end_worker()


def _tokenize(core: EngineCore) -> None:
    while (claimed := _next_to_tokenize(core)) is not None:
        _tokenize_claimed(core, *claimed)
        del claimed  # it would keep its request while this thread waits


def _next_to_tokenize(core: EngineCore) -> tuple[Request, npt.NDArray[np.int64]] | None:
    """Texts to tokenise, waited for; None when there will be no more."""
    while True:
        with core.lock:
            ended = core.update(core.clock())
            claimed = core.scheduler.next_to_tokenize()
            is_over = core.wake()
        core.end(ended)
        del ended
        if claimed is not None or is_over:
            return claimed
        core.tokenizer_wakes.wait()


def _tokenize_claimed(core: EngineCore, request: Request, rows: npt.NDArray[np.int64]) -> None:
    try:
        tokenized = core.inputs.tokenize(request, rows)
    except MillpondError as error:  # the call cannot be accepted after all
        with core.lock:
            ended = [(request, error)] if core.pending.drop(request) else []
            core.wake()
        core.end(ended)
        return
    with core.lock:
        if tokenized.refused:
            core.scheduler.refuse(request, tokenized.refused)
        if tokenized.chunk is not None:
            core.scheduler.ready(request, tokenized.chunk, core.clock())
        core.wake()
        completed = core.take_completed([request])
    core.finish(completed)


def _run_background(core: EngineCore) -> None:
    while True:
        with core.lock:
            now_s = core.clock()
            ended = core.update(now_s)
            deadline_s = core.scheduler.next_deadline()
            is_over = core.wake()
            core.background.look(deadline_s, is_over=is_over)
        core.end(ended)
        del ended  # it would keep their vectors while this thread waits
        core.background.run_tasks()
        if is_over:
            return
        core.background.wait(None if deadline_s is None else deadline_s - now_s)
