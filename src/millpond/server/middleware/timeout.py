"""`TimeoutMiddleware`: every request gets a response in time, whatever the application raises."""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ..drain import DrainState
from ..errors import ApiError, error_response
from ..request_context import CLIENT_CLOSED_REQUEST, RequestContext

__all__ = ["TimeoutMiddleware"]

logger = logging.getLogger("millpond.server")


class TimeoutMiddleware:
    """Pure ASGI, so that the application still sees a client that disconnects."""

    def __init__(self, app: ASGIApp, *, drain: DrainState, timeout_s: float) -> None:
        self._app = app
        self._drain = drain
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = RequestContext.of(scope)
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                self._drain.limits.add(limit)
                try:
                    await self._app(scope, receive, send)
                finally:
                    self._drain.limits.discard(limit)
            return
        except ClientDisconnect:
            context.status = context.status or CLIENT_CLOSED_REQUEST
            return
        except Exception as error:
            if context.status is not None:
                raise
            answer = self._answer(context, error, late=limit.expired())
        await error_response(answer)(scope, receive, send)

    def _answer(self, context: RequestContext, error: Exception, *, late: bool) -> ApiError:
        if not (late and isinstance(error, TimeoutError)):
            logger.exception("request %s failed", context.request_id)
            return ApiError.unexpected()
        if self._drain.over:
            return self._drain.refusal()
        return ApiError(
            504,
            f"not done within {self._timeout_s:g} s; send fewer texts a request",
            code="timeout",
        )

    def __repr__(self) -> str:
        return f"TimeoutMiddleware(timeout_s={self._timeout_s:g}, drain={self._drain!r})"
