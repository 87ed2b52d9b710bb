"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

from fastapi import Request, Response

from ...embeddings import Embeddings
from ...errors import QueueFull
from ...stats import EngineStats
from ..errors import ApiError
from ..metrics import Metrics
from ..middleware.request_context import RequestContext
from ..models import ServedModel
from ..schemas import EmbeddingRequest, input_kind
from .disconnect import result_or_disconnect
from .encoding import SlicedResponse, embedding_slices

__all__ = ["create_embedding"]

MAX_RETRY_AFTER_S = 60
LONGEST_QUERY = 64 * 2**10  # characters, or token ids, of a text that may be a query
MANY_TEXTS = 256  # that the engine takes in without holding up other requests for milliseconds


async def create_embedding(body: EmbeddingRequest, request: Request) -> Response:
    """OpenAI's embeddings, with a few options of Millpond's own."""
    state, context = request.app.state, RequestContext.of(request.scope)
    state.drain.require_accepted(context)
    model: ServedModel = state.models.find(body.model)
    metrics: Metrics = state.metrics
    context.log_fields["model"] = name = body.model or model.name
    priority = _priority(body)

    def submit() -> Future[Embeddings]:
        try:
            return _submit(model, body, priority, check_ids=not state.settings.allow_raw_token_ids)
        except QueueFull as error:
            metrics.rejected(model)
            raise _full(error, model) from error

    with metrics.in_engine(model, priority):
        has_many = isinstance(body.input, list) and len(body.input) > MANY_TEXTS
        call = await _on_a_thread(submit) if has_many else submit()
        result = await result_or_disconnect(call, request.receive)
    result.raise_for_errors()
    tokens = int(result.token_counts.sum())
    as_base64 = body.encoding_format == "base64"
    slices: list[bytes] = []
    for written in embedding_slices(result.vectors, model=name, tokens=tokens, as_base64=as_base64):
        if slices:
            await asyncio.sleep(0)  # other requests have the event loop in between
        slices.append(written)
    timings = _timings(result)
    context.log_fields.update(texts=len(result), tokens=tokens, **timings)
    headers = {f"x-millpond-{part.replace('_', '-')}": str(ms) for part, ms in timings.items()}
    headers["x-millpond-truncated-texts"] = str(int(result.truncated.sum()))
    return SlicedResponse(slices, headers)


async def _on_a_thread(submit: Callable[[], Future[Embeddings]]) -> Future[Embeddings]:
    """The call that was submitted. If this is cancelled, so is the call."""
    submitting = asyncio.ensure_future(asyncio.to_thread(submit))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(_cancel_call)
        raise


def _cancel_call(submitted: asyncio.Future[Future[Embeddings]]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _submit(
    model: ServedModel, body: EmbeddingRequest, priority: str, *, check_ids: bool
) -> Future[Embeddings]:
    texts = cast(Any, body.input)
    kind = input_kind(texts)
    options: dict[str, Any] = {}
    if kind in ("tokens", "token_lists"):
        if check_ids:
            model.require_special_tokens([texts] if kind == "tokens" else texts)
        _require_no_prompt(model, body)
        if body.input_type is None and body.prompt_name is None:
            options["prompt"] = ""  # ids are whole texts, with the default prompt
    elif body.prompt_name is not None:
        model.prompt(body.input_type, body.prompt_name)
    return model.engine.submit(
        texts,
        wait=False,
        task=body.input_type,
        prompt_name=body.prompt_name,
        dimensions=body.dimensions,
        normalize=body.normalize,
        truncate=body.truncate,
        priority=priority,
        **options,
    )


def _require_no_prompt(model: ServedModel, body: EmbeddingRequest) -> None:
    """Of a request with token ids. Raises `ApiError` 400 where it asks for a prompt."""
    asked = "input_type" if body.prompt_name is None else "prompt_name"
    if getattr(body, asked) is not None and model.prompt(body.input_type, body.prompt_name):
        raise ApiError(
            400,
            f"{asked}: its prompt cannot be put in front of token ids, which are whole texts; "
            "leave it out, or send texts",
            param=asked,
            code="invalid_value",
        )


def _priority(body: EmbeddingRequest) -> str:
    if body.priority is not None:
        return body.priority
    if body.input_type == "query":
        return "interactive"
    texts = cast(Any, body.input)
    if input_kind(texts) in ("texts", "token_lists"):
        if len(texts) > 1:
            return "bulk"
        (texts,) = texts
    return "interactive" if len(texts) <= LONGEST_QUERY else "bulk"


def _timings(result: Embeddings) -> dict[str, float]:
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
