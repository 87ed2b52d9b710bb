"""`TracingMiddleware`: a span for each request, around everything but the access log."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from ..request_context import RequestContext
from ..tracing import NOT_TRACED, Tracing

__all__ = ["TracingMiddleware"]


class TracingMiddleware:
    """Pure ASGI, so that the application still sees a client that disconnects."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].removeprefix(scope.get("root_path", "")) in NOT_TRACED:
            await self._app(scope, receive, send)
            return
        with self._tracing.request(RequestContext.of(scope)):
            await self._app(scope, receive, send)

    def __repr__(self) -> str:
        return f"TracingMiddleware({self._tracing!r})"
