"""`PathMiddleware`: redundant slashes and HEAD; and our routes for other servers' paths."""

from __future__ import annotations

import difflib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PathMiddleware", "meant_path"]

_SLASHES = re.compile("/{2,}")
_LONGEST_GUESSED = 200
_KNOWN = (
    "/v1/embeddings",
    "/v1/models",
    "/similarity",
    "/rerank",
    "/score",
    "/classify",
    "/predict",
    "/embed_sparse",
    "/tokenize",
    "/detokenize",
    "/health",
    "/metrics",
    "/info",
    "/version",
    "/docs",
    "/openapi.json",
)
# The last part of a path of another server -> our route.
_ELSEWHERE = {
    "embed": "/v1/embeddings",  # Ollama's
    "embed_all": "/v1/embeddings",
    "embedding": "/v1/embeddings",
    "embeddings": "/v1/embeddings",
    "encode": "/v1/embeddings",
    "pooling": "/v1/embeddings",
    "reranking": "/rerank",
    "rank": "/rerank",
    "models": "/v1/models",
    "tags": "/v1/models",
    "healthz": "/health",
    "livez": "/health",
    "readyz": "/health",
    "ping": "/health",
    "live": "/health",
    "ready": "/health",
    "redoc": "/docs",
}


class PathMiddleware:
    """Answers `/v1/embeddings/` and `//v1/embeddings` as `/v1/embeddings`, and HEAD as GET.

    Without a redirect, which would repeat the client's Host header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _SLASHES.sub("/", scope["path"]).rstrip("/")
        # What is at the root keeps its slash, also below the prefix of a proxy.
        scope["path"] = f"{path}/" if path in ("", scope.get("root_path")) else path
        answer = self._head if scope["method"] == "HEAD" else self._app
        await answer(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_no_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        as_get = {**scope, "method": "GET"}  # uvicorn reads the method of its own scope
        try:
            await self._app(as_get, receive, send_no_body)
        finally:
            if "route" in as_get:
                scope["route"] = as_get["route"]


def meant_path(path: str) -> str | None:
    """Our route for an unknown path, or None."""
    if len(path) > _LONGEST_GUESSED:
        return None
    last = path.lower().rstrip("/").rpartition("/")[2]
    for known in _KNOWN:
        if path.lower().endswith(known):
            return known
    close = difflib.get_close_matches(path.lower(), _KNOWN, n=1, cutoff=0.75)
    return _ELSEWHERE.get(last) or (close[0] if close else None)
