"""`create_app`: the ASGI application over loaded engines, which its caller closes.

Its routes find what they share in `app.state`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version as installed_version
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from .calls.body_parser import BodyParser
from .calls.json_route import DirectRoutes, JsonRoute
from .drain import DrainState
from .errors import COHERE_PATHS, TEI_PATHS, register_handlers
from .metrics import Metrics
from .middleware.access_log import AccessLogMiddleware
from .middleware.api_key import APIKeyMiddleware, declare_key
from .middleware.body import BodyMiddleware
from .middleware.paths import PathMiddleware
from .middleware.timeout import TimeoutMiddleware
from .models import ServedModel, ServedModels
from .page import PAGES, add_page
from .routes.classify import classify, predict
from .routes.cohere import embed_v1, embed_v2
from .routes.docs_page import add_docs_page
from .routes.embeddings import create_embedding
from .routes.models import list_models, retrieve_model
from .routes.pooling import embed_all, pooling
from .routes.rerank import rerank, score
from .routes.sparse import embed_sparse
from .routes.status import health, metrics, version
from .routes.tei import decode, embed, info, root, similarity
from .routes.tokens import TokenizingSlots, detokenize, tokenize
from .schemas.cohere import CohereEmbedResponse, CohereErrorResponse, CohereFloatsResponse
from .schemas.embeddings import (
    DetokenizeResponse,
    EmbeddingResponse,
    ErrorResponse,
    TokenizeResponse,
)
from .schemas.scores import (
    ClassifyResponse,
    PredictResponse,
    RerankResponse,
    ScoreResponse,
    TextScore,
)
from .schemas.tei import TeiErrorResponse
from .schemas.token_vectors import PoolingResponse, SparseValue
from .settings import AppSettings
from .tracing import Tracing

__all__ = ["create_app"]

_STATUSES = {
    400: "The request is invalid; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "The model is not served here.",
    405: "The route has other methods.",
    413: "The body or the list of inputs is too large.",
    415: "The body has a content-encoding that is not supported.",
    422: "The model could not compute a text.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "The server is shutting down, or an engine has failed.",
    504: "The request took longer than the server allows.",
}
_ERRORS: dict[str, type[BaseModel]] = {
    **dict.fromkeys(TEI_PATHS, TeiErrorResponse),
    **dict.fromkeys(COHERE_PATHS, CohereErrorResponse),
}
_COHERE_RESPONSES = CohereFloatsResponse | CohereEmbedResponse
_EXPOSED_HEADERS = (
    "x-request-id",
    "x-millpond-queue-ms",
    "x-millpond-tokenize-ms",
    "x-millpond-forward-ms",
    "x-millpond-truncated-texts",
    "retry-after",
)


def create_app(
    models: Sequence[ServedModel],
    settings: AppSettings | None = None,
    *,
    drain: DrainState | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application that serves these models. Raises `InvalidOption` for a name given twice.

    Its caller closes `tracing`, without which there are no spans.
    """
    settings = settings or AppSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.metrics.close()
        app.state.body_parser.close()

    app = _Application(
        settings,
        title="Millpond",
        summary="Embeddings, scores and classes over HTTP, compatible with OpenAI's API.",
        version=installed_version("millpond"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,
        # Spans are those of `Tracing`; FastAPI would ask for providers of its own at every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.settings = settings
    app.state.drain = drain or DrainState()
    app.state.tracing = tracing
    app.state.models = ServedModels(models)
    app.state.metrics = Metrics(app.state.models)
    app.state.body_parser = BodyParser()
    app.state.tokenizing_slots = TokenizingSlots()
    # Not on an included router, which would match every request a second time.
    _add_routes(app.router)
    add_page(app, settings.root_path)
    add_docs_page(app, guarded=bool(settings.api_keys))
    register_handlers(app)
    _add_middleware(app)
    return app


class _Application(FastAPI):
    """FastAPI whose OpenAPI document says which routes need a key."""

    def __init__(self, settings: AppSettings, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Only requests go through the middleware, and not the server's start and stop."""
        if scope["type"] == "http":
            await super().__call__(scope, receive, send)
        else:
            await self.router({**scope, "app": self}, receive, send)

    def openapi(self) -> dict[str, Any]:
        is_new = self.openapi_schema is None
        document = super().openapi()
        if is_new and self._settings.api_keys:
            declare_key(document, open_paths=_open_paths(self._settings))
        return document


def _open_paths(settings: AppSettings) -> list[str]:
    """The paths that need no key where there are keys."""
    return ["/health"] if settings.protect_metrics else ["/health", "/metrics"]


def _add_routes(router: APIRouter) -> None:
    def get(path: str, endpoint: Callable[..., Any], summary: str, **options: Any) -> None:
        responses = _responses(path, 401, 405, 500, 503, 504) | options.pop("responses", {})
        router.add_api_route(path, endpoint, summary=summary, responses=responses, **options)

    def post(
        path: str, endpoint: Callable[..., Any], summary: str, answer: Any, **options: Any
    ) -> None:
        version = path.split("/")[1] if path.startswith(("/v1/rerank", "/v2/rerank")) else ""
        router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            response_model=answer,
            responses=_responses(path, *_STATUSES),
            route_class_override=JsonRoute,
            operation_id=f"{endpoint.__name__}_{version}".rstrip("_"),
            **options,
        )

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    for prefix in ("/v1", ""):  # infinity's have none; the document has each once
        once: dict[str, Any] = {"include_in_schema": bool(prefix)}
        summary = "Embed one text or several"
        post(f"{prefix}/embeddings", create_embedding, summary, EmbeddingResponse, **once)
        get(f"{prefix}/models", list_models, "List the served models", **once)
    get(
        "/v1/models/{model_id:path}",
        retrieve_model,
        "Describe a served model",
        responses=_responses("", 404),
    )
    post("/embed", embed, "Embed texts, as TEI", list[list[float]])
    post("/similarity", similarity, "Compare a text with others, as TEI", list[float])
    post("/", root, "Embed `inputs` or rank `texts`, as TEI", Any)
    post("/v1/embed", embed_v1, "Embed texts, as Cohere", _COHERE_RESPONSES)
    post("/v2/embed", embed_v2, "Embed texts, as Cohere", CohereEmbedResponse)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        post(path, rerank, "Order documents by a query", RerankResponse | list[TextScore])
    post("/score", score, "Score pairs of texts", ScoreResponse)
    post("/classify", classify, "Classify texts", ClassifyResponse)
    post("/predict", predict, "Classify texts or pairs", PredictResponse)
    post("/embed_sparse", embed_sparse, "The weights of a text's terms", list[list[SparseValue]])
    post("/embed_all", embed_all, "A vector for each token", list[list[list[float]]])
    post("/pooling", pooling, "What a model gives of texts", PoolingResponse)
    post("/tokenize", tokenize, "The token ids of a text", TokenizeResponse)
    post("/detokenize", detokenize, "The text of token ids", DetokenizeResponse)
    post("/decode", decode, "The texts of token ids, as TEI", list[str])
    get("/info", info, "Describe a model, as TEI", responses=_responses("/info", 404))
    get("/health", health, "Whether the server is ready")
    get("/metrics", metrics, "For Prometheus", response_class=Response, responses={200: text})
    get("/version", version, "The version of Millpond")


def _responses(path: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route."""
    model = _ERRORS.get(path, ErrorResponse)
    return {status: {"model": model, "description": _STATUSES[status]} for status in statuses}


def _add_middleware(app: FastAPI) -> None:
    """The last one added is the outermost."""
    settings, drain = app.state.settings, app.state.drain
    app.add_middleware(DirectRoutes, routes=app.routes)
    app.add_middleware(BodyMiddleware, max_bytes=settings.max_body_bytes)
    if settings.api_keys:
        app.add_middleware(
            APIKeyMiddleware,
            keys=settings.api_keys,
            open_paths=_open_paths(settings),
            open_pages=(*PAGES, "/docs"),
        )
    app.add_middleware(TimeoutMiddleware, drain=drain, timeout_s=settings.request_timeout_s)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(PathMiddleware)
    app.add_middleware(
        AccessLogMiddleware,
        metrics=app.state.metrics,
        drain=drain,
        tracing=app.state.tracing,
        root_path=settings.root_path,
    )
