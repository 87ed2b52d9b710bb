"""What the routes that score or classify ask an engine, and the lists that they answer with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson
from fastapi import Request

from ...engine.params.score import INTERACTIVE_PAIRS
from ...scores import Scores
from ..models import ServedModel
from ..request_context import RequestContext
from ..schemas.scores import ScoringBody
from .encoding import item_slices
from .engine_call import LONGEST_QUERY, MANY_TEXTS, Answer, ask

__all__ = ["ask_for_scores", "list_slices", "opening", "usage_of"]


async def ask_for_scores(
    request: Request,
    model: ServedModel,
    submit: Callable[..., Any],
    inputs: Callable[[], Sequence[Any]],
    lengths: Sequence[int],
    body: ScoringBody,
    *,
    activation: str,
    few: int = INTERACTIVE_PAIRS,
    has_much: bool = False,
) -> Answer[Scores]:
    """The scores of texts or pairs of these lengths, in characters; `few` are interactive.

    `submit` is the call of the model's engine. Raises `ApiError`.
    """
    priority = _priority(body, lengths, few=few)

    def call() -> Any:
        return submit(
            inputs(),
            wait=False,
            activation=activation,
            truncate=body.truncate_option,
            prompt=body.prompt,
            prompt_name=body.prompt_name,
            priority=priority,
        )

    has_much = has_much or len(lengths) > MANY_TEXTS
    field = body.LARGE_FIELDS[0]
    return await ask(request, model, call, priority=priority, field=field, has_much=has_much)


def _priority(body: ScoringBody, lengths: Sequence[int], *, few: int) -> str:
    """Of a request for texts or pairs of these lengths, in characters."""
    if body.priority is not None:
        return body.priority
    is_small = len(lengths) <= few and max(lengths) <= LONGEST_QUERY
    return "interactive" if is_small else "bulk"


def opening(request: Request, kind: str, model: str) -> bytes:
    """The first fields of a response, without the brace that ends them."""
    fields = {"id": RequestContext.of(request.scope).request_id, "object": kind, "model": model}
    return orjson.dumps(fields)[:-1]


def usage_of(tokens: int) -> dict[str, int]:
    """As OpenAI has it."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def list_slices(
    request: Request, kind: str, model: str, items: Iterable[Iterable[bytes]], tokens: int
) -> Iterator[bytes]:
    """JSON of items in vLLM's shape, with the time and the usage."""
    created = f',"created":{int(time.time())},"data":['.encode()
    after = b'],"usage":' + orjson.dumps(usage_of(tokens)) + b"}"
    return item_slices(opening(request, kind, model) + created, items, after)
