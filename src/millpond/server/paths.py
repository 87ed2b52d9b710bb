"""`PlainPaths`: the ways of writing a path and a method that mean a route; and which route a client
looks for that asks at another path.
"""

from __future__ import annotations

import difflib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PlainPaths", "meant_path"]

_SLASHES = re.compile("/{2,}")
_LONGEST_GUESSED = 200
_KNOWN = (
    "/v1/embeddings",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/health",
    "/metrics",
    "/version",
    "/docs",
    "/openapi.json",
)
# What other servers have in the last part of the path, and the route that does it here.
_ELSEWHERE = {
    "embed": "/v1/embeddings",
    "embed_all": "/v1/embeddings",
    "embedding": "/v1/embeddings",
    "embeddings": "/v1/embeddings",
    "encode": "/v1/embeddings",
    "pooling": "/v1/embeddings",
    "models": "/v1/models",
    "info": "/v1/models",
    "tags": "/v1/models",
    "healthz": "/health",
    "livez": "/health",
    "readyz": "/health",
    "ping": "/health",
    "live": "/health",
    "ready": "/health",
    "redoc": "/docs",
}


class PlainPaths:
    """Answers `/v1/embeddings/` and `//v1/embeddings` as `/v1/embeddings`, and HEAD as GET.

    No redirect is made, which would name the host that the client named.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = _SLASHES.sub("/", scope["path"]).rstrip("/") or "/"
            if scope["method"] == "HEAD":
                await self._head(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_no_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        as_get = {**scope, "method": "GET"}  # the server reads the method of its own scope
        try:
            await self._app(as_get, receive, send_no_body)
        finally:
            if "route" in as_get:
                scope["route"] = as_get["route"]


def meant_path(path: str) -> str | None:
    """The route that a client looks for at a path where there is none, or None."""
    if len(path) > _LONGEST_GUESSED:
        return None
    last = path.lower().rstrip("/").rpartition("/")[2]
    for known in _KNOWN:
        if path.lower().endswith(known):
            return known
    close = difflib.get_close_matches(path.lower(), _KNOWN, n=1, cutoff=0.75)
    return _ELSEWHERE.get(last) or (close[0] if close else None)
