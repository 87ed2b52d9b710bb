"""`POST /tokenize` and `/detokenize`, in vLLM's shape.

Tokenising takes up to 500 bytes a character, so few requests are tokenised at a time: one large
one beside a few others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import orjson
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from ...errors import InvalidInput
from ..calls.encoding import array_slices
from ..errors import ApiError
from ..models import ServedModel
from ..request_context import RequestContext
from ..schemas.embeddings import DetokenizeRequest, TokenizeRequest

__all__ = ["TokenizingSlots", "detokenize", "tokenize", "tokenizing_model"]

LARGE = 64 * 2**10  # characters, or token ids
SMALL_AT_A_TIME = 4


class TokenizingSlots:
    """How many requests of one application are tokenised at a time."""

    def __init__(self) -> None:
        self._small = asyncio.Semaphore(SMALL_AT_A_TIME)
        self._large = asyncio.Semaphore(1)

    async def run(self, size: int, work: Callable[[], Iterator[bytes]]) -> Response:
        """The JSON that the work gives on another thread."""
        async with self._large if size > LARGE else self._small:
            content = await run_in_threadpool(lambda: b"".join(work()))
        return Response(content, media_type="application/json")


async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The ids that `/v1/embeddings` would embed for this text, were it not truncated."""
    model = tokenizing_model(body.model, request)
    model.prompt(body.input_type, body.prompt_name)
    slots: TokenizingSlots = request.app.state.tokenizing_slots
    return await slots.run(len(body.prompt), lambda: _tokenized(model, body))


async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of these ids, special tokens included."""
    model = tokenizing_model(body.model, request)
    slots: TokenizingSlots = request.app.state.tokenizing_slots
    return await slots.run(len(body.tokens), lambda: _detokenized(model, body))


def tokenizing_model(name: str | None, request: Request) -> ServedModel:
    """The model of that name, or the only one. Raises `ApiError`."""
    state = request.app.state
    state.drain.require_accepted(RequestContext.of(request.scope))
    model: ServedModel = state.models.find(name)
    return model


def _tokenized(model: ServedModel, body: TokenizeRequest) -> Iterator[bytes]:
    engine = model.engine
    try:
        (ids,) = engine.tokenize(
            [body.prompt],
            task=body.input_type,
            prompt_name=body.prompt_name,
            special_tokens=body.add_special_tokens,
        )
    except InvalidInput as error:
        raise ApiError.about("prompt", error.args[0], code="invalid_input") from error
    facts = {"count": len(ids), "max_model_len": engine.info().max_length}
    yield orjson.dumps(facts)[:-1] + b',"tokens":'
    yield from array_slices(ids)
    yield b',"token_strs":'
    if body.return_token_strs:
        yield from array_slices(engine.detokenize([[one] for one in ids]))
    else:
        yield b"null"
    yield b"}"


def _detokenized(model: ServedModel, body: DetokenizeRequest) -> Iterator[bytes]:
    try:
        (text,) = model.engine.detokenize([body.tokens])
    except InvalidInput as error:
        raise ApiError.about("tokens", error.args[0], code="invalid_token_ids") from error
    yield orjson.dumps({"prompt": text})
