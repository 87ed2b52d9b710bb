"""One request's call of an engine: submitted, waited for, counted, and described in headers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request

from ...errors import InvalidInput, QueueFull, TextFailed
from ...outputs import CallResult
from ...stats import EngineStats
from ..errors import ApiError
from ..metrics import Metrics
from ..models import ServedModel
from ..request_context import RequestContext
from ..tracing import Tracing
from .disconnect import result_or_disconnect

__all__ = ["LONGEST_QUERY", "MANY_TEXTS", "Answer", "ask", "model_for"]

MAX_RETRY_AFTER_S = 60
LONGEST_QUERY = 64 * 2**10  # characters, or token ids, of a text that may be a query
MANY_TEXTS = 256  # that the engine takes in without holding up other requests for milliseconds

Result = TypeVar("Result", bound=CallResult)


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """The result of a call without errors."""

    result: Result
    tokens: int
    headers: dict[str, str]


def model_for(request: Request, name: str | None, kinds: tuple[str, ...]) -> ServedModel:
    """The model that a request names, or the only one that can answer it. Raises `ApiError`."""
    state, context = request.app.state, RequestContext.of(request.scope)
    state.drain.require_accepted(context)
    model: ServedModel = state.models.find(name, kinds)
    context.log_fields["model"] = name or model.name
    return model


async def ask(
    request: Request,
    model: ServedModel,
    submit: Callable[[], Future[Result]],
    *,
    priority: str,
    field: str,
    has_much: bool,
) -> Answer[Result]:
    """Make the call that `submit` hands to the engine, on a thread where it has much to take in.

    Raises `ApiError` for a full queue, and for a text, of which it names the field.
    """
    metrics: Metrics = request.app.state.metrics
    tracing: Tracing | None = request.app.state.tracing
    submitted_ns = time.time_ns()

    def submit_or_refuse() -> Future[Result]:
        try:
            return submit()
        except QueueFull as error:
            metrics.rejected(model)
            raise _full(error, model) from error

    try:
        with metrics.in_engine(model, priority):
            call = await _on_a_thread(submit_or_refuse) if has_much else submit_or_refuse()
            result = await result_or_disconnect(call, request.scope, request.receive)
        result.raise_for_errors()
    except (InvalidInput, TextFailed) as error:
        # Its traceback would lead to the result, which has the error.
        raise ApiError.of(error, field) from error.with_traceback(None)
    if tracing is not None:
        tracing.engine_call(submitted_ns, result.timings)
    return _answer(request, result)


def _answer(request: Request, result: Result) -> Answer[Result]:
    tokens = sum(result.token_counts.tolist())  # numpy's own takes longer for a single text
    timings = _timings(result)
    RequestContext.of(request.scope).log_fields.update(texts=len(result), tokens=tokens, **timings)
    headers = {f"x-millpond-{part.replace('_', '-')}": str(ms) for part, ms in timings.items()}
    headers["x-millpond-truncated-texts"] = str(sum(result.truncated.tolist()))
    return Answer(result, tokens, headers)


async def _on_a_thread(submit: Callable[[], Future[Result]]) -> Future[Result]:
    """The call that was submitted. If this is cancelled, so is the call."""
    submitting = asyncio.ensure_future(asyncio.to_thread(submit))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(_cancel_call)
        raise


def _cancel_call(submitted: asyncio.Future[Future[Result]]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _timings(result: CallResult) -> dict[str, float]:
    timings = result.timings
    return {
        "queue_ms": round(timings.queue_s * 1000, 3),
        "tokenize_ms": round(timings.tokenize_s * 1000, 3),
        "forward_ms": round(timings.forward_s * 1000, 3),
    }


def _full(error: QueueFull, model: ServedModel) -> ApiError:
    stats = model.engine.stats()
    seconds = _retry_after_s(stats)
    answer = ApiError.of(error)
    answer.detail = (
        f"the queue is full: {stats.waiting_interactive_tokens} tokens of interactive requests and "
        f"{stats.waiting_bulk_tokens} of bulk requests are waiting; send it again in {seconds} s. "
        "The server's flag --max-queue-tokens is the limit"
    )
    answer.headers = {"retry-after": str(seconds)}
    return answer


def _retry_after_s(stats: EngineStats) -> int:
    """How long the waiting tokens take at the mean speed so far, in whole seconds."""
    waiting = stats.waiting_interactive_tokens + stats.waiting_bulk_tokens
    seconds = waiting * stats.forward_s / stats.tokens if stats.tokens else 1.0
    return max(1, min(MAX_RETRY_AFTER_S, math.ceil(seconds)))
