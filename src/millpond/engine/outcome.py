"""How a call ends: its result, or the error that says why there is none.

A job is ended by whoever took it out of those that are pending, so each is ended once.
"""

from __future__ import annotations

import logging

from ..errors import DeadlineExceeded, EngineFailed, MillpondError, QueueFull
from ..scheduler.request import Request

__all__ = ["deadline_error", "end", "end_own", "engine_failure", "queue_full", "warn_of_truncation"]

logger = logging.getLogger("millpond")


def end(job: Request, error: MillpondError | None = None, *, result_s: float = 0.0) -> None:
    """End a job's future with an error or its result, unless its caller cancelled it.

    It raises nothing, whatever waits for the future: other jobs are still to be ended.
    """
    try:
        _end(job, error, result_s)
    except BaseException:
        logger.exception("the end of a call raised; the engine goes on")
    job.future.admission.open()


def end_own(job: Request, *, result_s: float) -> None:
    """End a job on the thread of its caller, who alone holds it and may be interrupted."""
    _end(job, None, result_s)


def _end(job: Request, error: MillpondError | None, result_s: float) -> None:
    future = job.future
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(job.result(result_s))


def deadline_error(job: Request) -> DeadlineExceeded:
    """The job's time is over."""
    done = len(job) - job.remaining
    return DeadlineExceeded(
        f"the call's timeout passed with {done} of its {len(job)} texts embedded; "
        "allow more time or send fewer texts"
    )


def queue_full(job: Request, waiting_tokens: int) -> QueueFull:
    """So much waits in the job's lane that there is no room for it."""
    return QueueFull(
        f"{waiting_tokens} tokens are waiting in the {job.lane.value} lane and this call brings "
        f"about {job.waiting_tokens} more; try again later, or raise max_queue_tokens"
    )


def engine_failure(cause: BaseException | None) -> EngineFailed:
    """The engine is lost, and all its jobs with it."""
    error = EngineFailed(
        f"the engine failed and serves no more calls ({type(cause).__name__}: {cause}); "
        "make a new one"
    )
    error.__cause__ = cause
    return error


def warn_of_truncation(job: Request, truncated: int) -> None:
    """Say that texts of a job were cut."""
    logger.warning(
        "%d of %d texts were longer than the model reads and were truncated "
        "(logged once; every result says which of its texts were)",
        truncated,
        len(job),
    )
