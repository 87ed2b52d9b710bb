"""The small routes: models, tokens, health, metrics, version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ...errors import InvalidInput
from ..drain import DrainState
from ..errors import ApiError
from ..metrics import Metrics
from ..middleware.request_context import RequestContext
from ..models import ServedModel, ServedModels
from ..schemas import (
    DetokenizeRequest,
    DetokenizeResponse,
    HealthResponse,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
    VersionResponse,
)
from .json_body import JsonRoute

__all__ = ["ModelRoutes", "StateRoutes", "TokenRoutes"]

LARGE = 64 * 2**10  # characters, or token ids


SMALL_AT_A_TIME = 4


Responses = dict[int | str, dict[str, Any]]


class ModelRoutes:
    """`GET /v1/models` and `/v1/models/{id}`."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def add_to(self, router: APIRouter, responses: Responses) -> None:
        """Declare the routes."""
        router.add_api_route(
            "/v1/models", self.all, summary="The models that are served", responses=responses
        )
        router.add_api_route(
            "/v1/models/{model_id:path}", self.one, summary="One of them", responses=responses
        )

    async def all(self) -> ModelList:
        """Every name a model can be asked for by."""
        return ModelList(data=[_card(name, model) for name, model in self._models.by_name()])

    async def one(self, model_id: str) -> ModelCard:
        """The model of that name."""
        return _card(model_id, self._models.find(model_id))


def _card(name: str, model: ServedModel) -> ModelCard:
    info = model.engine.info()
    return ModelCard(
        id=name,
        created=model.created,
        root=info.model.name,
        dimension=info.dimension,
        max_model_len=info.max_length,
        device=info.device,
        dtype=info.dtype,
        execution=info.execution,
    )


class TokenRoutes:
    """`POST /tokenize` and `/detokenize`, in vLLM's shape.

    Tokenising takes up to 500 bytes a character, so few bodies have a turn at a time: one of the
    large, beside a few others.
    """

    def __init__(self, models: ServedModels, *, lifecycle: DrainState) -> None:
        self._models = models
        self._lifecycle = lifecycle
        self._turns = asyncio.Semaphore(SMALL_AT_A_TIME)
        self._large_turn = asyncio.Semaphore(1)

    def add_to(self, router: APIRouter, responses: Responses) -> None:
        """Declare the routes."""
        router.add_api_route(
            "/tokenize",
            self.tokenize,
            methods=["POST"],
            route_class_override=JsonRoute,
            response_model=TokenizeResponse,
            summary="The token ids of a text",
            responses=responses,
        )
        router.add_api_route(
            "/detokenize",
            self.detokenize,
            methods=["POST"],
            route_class_override=JsonRoute,
            response_model=DetokenizeResponse,
            summary="The text of token ids",
            responses=responses,
        )

    async def tokenize(self, body: TokenizeRequest, request: Request) -> Response:
        """The ids that `/v1/embeddings` would embed for this text, were it not cut."""
        self._lifecycle.require_accepted(RequestContext.of(request.scope))
        model = self._models.find(body.model)
        model.prompt(body.input_type, body.prompt_name)
        return await self._in_turn(len(body.prompt), lambda: _tokenized(model, body))

    async def detokenize(self, body: DetokenizeRequest, request: Request) -> Response:
        """The text of these ids, special tokens spelled out."""
        self._lifecycle.require_accepted(RequestContext.of(request.scope))
        model = self._models.find(body.model)
        return await self._in_turn(len(body.tokens), lambda: _detokenized(model, body))

    async def _in_turn(self, size: int, work: Callable[[], BaseModel]) -> Response:
        """What the work gives on another thread, as JSON that is written there too."""
        async with self._large_turn if size > LARGE else self._turns:
            content = await run_in_threadpool(lambda: work().model_dump_json())
        return Response(content, media_type="application/json")


def _tokenized(model: ServedModel, body: TokenizeRequest) -> TokenizeResponse:
    engine = model.engine
    try:
        (ids,) = engine.tokenize(
            [body.prompt],
            task=body.input_type,
            prompt_name=body.prompt_name,
            special_tokens=body.add_special_tokens,
        )
    except InvalidInput as error:
        raise _refused("prompt", error, code="invalid_input") from error
    return TokenizeResponse(
        count=len(ids),
        max_model_len=engine.info().max_length,
        tokens=ids,
        token_strs=engine.detokenize([[one] for one in ids]) if body.return_token_strs else None,
    )


def _detokenized(model: ServedModel, body: DetokenizeRequest) -> DetokenizeResponse:
    try:
        (text,) = model.engine.detokenize([body.tokens])
    except InvalidInput as error:
        raise _refused("tokens", error, code="invalid_token_ids") from error
    return DetokenizeResponse(prompt=text)


def _refused(param: str, error: InvalidInput, *, code: str) -> ApiError:
    """What the engine says of its one text, said of the field that holds it."""
    return ApiError(400, f"{param}: {error.args[0]}", param=param, code=code)


class StateRoutes:
    """`GET /health`, `/metrics` and `/version`."""

    def __init__(
        self, models: ServedModels, *, metrics: Metrics, lifecycle: DrainState, version: str
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._version = version

    def add_to(self, router: APIRouter, responses: Responses) -> None:
        """Declare the routes."""
        router.add_api_route(
            "/health", self.health, summary="Whether it serves", responses=responses
        )
        router.add_api_route(
            "/metrics",
            self.metrics,
            summary="For Prometheus",
            response_class=Response,
            responses={**responses, 200: {"content": {"text/plain": {"schema": _TEXT}}}},
        )
        router.add_api_route("/version", self.version, summary="Its version", responses=responses)

    async def health(self) -> HealthResponse:
        """200 while every engine takes calls; 503 once one has failed, or while draining."""
        self._lifecycle.require_open()
        states = {model.name: model.engine.health for model in self._models}
        for name, state in states.items():
            if state != "ready":
                raise ApiError(503, f"the engine of {name} is {state}", code="unhealthy")
        return HealthResponse(models={name: str(state) for name, state in states.items()})

    async def metrics(self) -> Response:
        """Counters, gauges and histograms in Prometheus' text format."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def version(self) -> VersionResponse:
        """The version of Millpond that answers."""
        return VersionResponse(version=self._version)


_TEXT = {"type": "string"}
