"""`TimeoutMiddleware`: every request gets an answer, in time, whatever the application raises."""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ..drain import DrainState
from ..errors import ApiError, error_response
from .request_context import HUNG_UP, RequestContext

__all__ = ["TimeoutMiddleware"]

logger = logging.getLogger("millpond.server")


class TimeoutMiddleware:
    """Pure ASGI: a client that hangs up is still seen through it."""

    def __init__(self, app: ASGIApp, *, lifecycle: DrainState, timeout_s: float) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = RequestContext.of(scope)
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                self._lifecycle.limits.add(limit)
                try:
                    await self._app(scope, receive, send)
                finally:
                    self._lifecycle.limits.discard(limit)
            return
        except ClientDisconnect:
            exchange.status = exchange.status or HUNG_UP
            return
        except Exception as error:
            if exchange.status is not None:
                raise
            answer = self._answer(exchange, error, late=limit.expired())
        await error_response(answer)(scope, receive, send)

    def _answer(self, exchange: RequestContext, error: Exception, *, late: bool) -> ApiError:
        if not (late and isinstance(error, TimeoutError)):
            logger.exception("request %s failed", exchange.request_id)
            return ApiError.unexpected()
        if self._lifecycle.over:
            return self._lifecycle.refusal()
        return ApiError(
            504,
            f"not done within {self._timeout_s:g} s; send fewer texts a request",
            code="timeout",
        )

    def __repr__(self) -> str:
        return f"TimeoutMiddleware(timeout_s={self._timeout_s:g}, lifecycle={self._lifecycle!r})"
