"""`PathMiddleware`: redundant slashes, and HEAD."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PathMiddleware"]

_SLASHES = re.compile("/{2,}")


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
