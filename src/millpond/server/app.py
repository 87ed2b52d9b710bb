"""`create_app`: the ASGI application over engines that somebody else loaded and will close."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version as installed_version
from typing import Any

from fastapi import APIRouter, FastAPI

from .drain import DrainState
from .errors import register_handlers
from .metrics import Metrics
from .middleware.access_log import AccessLogMiddleware
from .middleware.api_key import APIKeyMiddleware, declare_key
from .middleware.body_encoding import BodyEncoding
from .middleware.body_limit import BodyLimit
from .middleware.cross_origin import CrossOrigin
from .middleware.timeout import TimeoutMiddleware
from .models import ServedModel, ServedModels
from .paths import PlainPaths
from .routes.docs_page import add_docs_page
from .routes.embeddings import EmbeddingsRoute
from .routes.models_tokens_status import ModelRoutes, StateRoutes, TokenRoutes
from .schemas import ErrorResponse
from .settings import AppSettings

__all__ = ["create_app"]

_ABOUT = {
    400: "The request cannot be meant; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "The model is not served here.",
    405: "Another method is meant.",
    413: "The body or the list of inputs is too large.",
    415: "The body has a content-encoding that is not decoded here.",
    422: "The model could not embed a text.",
    429: "The queue is full; `Retry-After` says when to come again.",
    500: "The server made a mistake.",
    503: "The server is shutting down, or an engine has failed.",
    504: "It took longer than the server allows.",
}
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
    lifecycle: DrainState | None = None,
) -> FastAPI:
    """The application that serves these models. Raises `InvalidOption` for a name given twice."""
    settings = settings or AppSettings()
    lifecycle = lifecycle or DrainState()
    served = ServedModels(models)
    metrics = Metrics(served)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        metrics.close()

    app = _Application(
        settings,
        title="Millpond",
        summary="Embeddings over HTTP, as OpenAI's API has them.",
        version=installed_version("millpond"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,
    )
    app.state.ignore_unknown_fields = settings.ignore_unknown_fields
    # A router of our own, included, would be matched a second time for every request.
    _add_routes(app.router, served, metrics, lifecycle, settings)
    add_docs_page(app)
    register_handlers(app)
    _add_middleware(app, settings, metrics, lifecycle)
    return app


class _Application(FastAPI):
    """FastAPI's, but that its document says where a key is needed."""

    def __init__(self, settings: AppSettings, **about: Any) -> None:
        super().__init__(**about)
        self._settings = settings

    def openapi(self) -> dict[str, Any]:
        is_new = self.openapi_schema is None
        document = super().openapi()
        if is_new and self._settings.api_keys:
            declare_key(document, open_paths=_open_paths(self._settings))
        return document


def _open_paths(settings: AppSettings) -> list[str]:
    """What needs no key where there are keys."""
    return ["/health"] if settings.protect_metrics else ["/health", "/metrics"]


def _add_routes(
    router: APIRouter,
    models: ServedModels,
    metrics: Metrics,
    lifecycle: DrainState,
    settings: AppSettings,
) -> None:
    EmbeddingsRoute(
        models,
        metrics=metrics,
        lifecycle=lifecycle,
        allow_raw_token_ids=settings.allow_raw_token_ids,
    ).add_to(router, _responses(*_ABOUT))
    ModelRoutes(models).add_to(router, _responses(401, 404, 405, 500, 504))
    TokenRoutes(models, lifecycle=lifecycle).add_to(router, _responses(*_ABOUT))
    state = StateRoutes(
        models, metrics=metrics, lifecycle=lifecycle, version=installed_version("millpond")
    )
    state.add_to(router, _responses(401, 405, 500, 503, 504))


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse, "description": _ABOUT[status]} for status in statuses}


def _add_middleware(
    app: FastAPI, settings: AppSettings, metrics: Metrics, lifecycle: DrainState
) -> None:
    """The last one added is the outermost."""
    app.add_middleware(BodyEncoding, max_bytes=settings.max_body_bytes)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.api_keys:
        app.add_middleware(
            APIKeyMiddleware, keys=settings.api_keys, open_paths=_open_paths(settings)
        )
    app.add_middleware(TimeoutMiddleware, lifecycle=lifecycle, timeout_s=settings.request_timeout_s)
    if settings.cors_origins:
        app.add_middleware(
            CrossOrigin,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(PlainPaths)
    app.add_middleware(
        AccessLogMiddleware, metrics=metrics, lifecycle=lifecycle, root_path=settings.root_path
    )
