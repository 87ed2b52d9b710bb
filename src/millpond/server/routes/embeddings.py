"""`POST /v1/embeddings`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from ...embeddings import Embeddings
from ...errors import QueueFull
from ...stats import EngineStats
from ..drain import DrainState
from ..errors import ApiError
from ..metrics import Metrics
from ..middleware.request_context import RequestContext
from ..models import ServedModel, ServedModels
from ..schemas import EmbeddingRequest, EmbeddingResponse
from .disconnect import answer_or_hang_up
from .encoding import embedding_body
from .json_body import JsonRoute

__all__ = ["EmbeddingsRoute"]

MAX_RETRY_AFTER_S = 60


LONGEST_QUERY = 64 * 2**10  # characters, or token ids, of a text that may be somebody's question


class EmbeddingsRoute:
    """Turns requests into calls of the engines, and results into answers."""

    def __init__(
        self,
        models: ServedModels,
        *,
        metrics: Metrics,
        lifecycle: DrainState,
        allow_raw_token_ids: bool,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._allow_raw_token_ids = allow_raw_token_ids

    def add_to(self, router: APIRouter, responses: dict[int | str, dict[str, Any]]) -> None:
        """Declare the route."""
        router.add_api_route(
            "/v1/embeddings",
            self.embed,
            methods=["POST"],
            route_class_override=JsonRoute,
            response_model=EmbeddingResponse,
            responses=responses,
            summary="Embed one text or several",
            operation_id="create_embedding",
        )

    async def embed(self, body: EmbeddingRequest, request: Request) -> Response:
        """OpenAI's embeddings, with a few options of Millpond's own."""
        exchange = RequestContext.of(request.scope)
        self._lifecycle.require_accepted(exchange)
        model = self._models.find(body.model)
        name = body.model or model.name
        exchange.notes["model"] = name
        priority = _priority(body)
        with self._metrics.at_priority(model, priority):
            call = self._submit(model, body, priority)
            result = await answer_or_hang_up(call, request.receive)
        result.raise_for_errors()
        tokens = int(result.token_counts.sum())
        content = embedding_body(
            result.vectors,
            model=name,
            tokens=tokens,
            as_base64=body.encoding_format == "base64",
        )
        timings = _timings(result)
        exchange.notes.update(texts=len(result), tokens=tokens, **timings)
        headers = {f"x-millpond-{part.replace('_', '-')}": str(ms) for part, ms in timings.items()}
        headers["x-millpond-truncated-texts"] = str(int(result.truncated.sum()))
        return Response(content, headers=headers, media_type="application/json")

    def _submit(self, model: ServedModel, body: EmbeddingRequest, priority: str) -> Any:
        texts = cast(Any, body.input)
        options: dict[str, Any] = {}
        if _is_tokens(texts):
            if not self._allow_raw_token_ids:
                model.special_ends.require(texts if isinstance(texts[0], list) else [texts])
            _require_no_prompt(model, body)
            if body.input_type is None and body.prompt_name is None:
                options["prompt"] = ""  # ids are whole texts, a default prompt among them
        elif body.prompt_name is not None:
            model.prompt(body.input_type, body.prompt_name)
        try:
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
        except QueueFull as error:
            self._metrics.rejected(model)
            raise _full(error, model) from error


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
    if isinstance(texts, list) and not isinstance(texts[0], int):
        if len(texts) > 1:
            return "bulk"
        (texts,) = texts
    return "interactive" if len(texts) <= LONGEST_QUERY else "bulk"


def _is_tokens(texts: str | Sequence[Any]) -> bool:
    return not isinstance(texts, str) and isinstance(texts[0], int | list)


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
        f"the queue is full: {stats.waiting_interactive_tokens} tokens of queries and "
        f"{stats.waiting_bulk_tokens} of bulk requests are waiting; send it again in {seconds} s. "
        "The server's flag --max-queue-tokens is the bound"
    )
    answer.headers = {"retry-after": str(seconds)}
    return answer


def _retry_after_s(stats: EngineStats) -> int:
    """How long what waits takes at the speed so far, in whole seconds."""
    waiting = stats.waiting_interactive_tokens + stats.waiting_bulk_tokens
    seconds = waiting * stats.forward_s / stats.tokens if stats.tokens else 1.0
    return max(1, min(MAX_RETRY_AFTER_S, math.ceil(seconds)))
