"""`Observer`: the middleware around every request.

It gives the request its id, its prefix and its time limit, turns what nobody foresaw into an
error answer, and tells the access log and the metrics how it went.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, error_response
from .exchange import HUNG_UP, Exchange
from .metrics import Metrics

__all__ = ["Observer"]

access_logger = logging.getLogger("millpond.access")
logger = logging.getLogger("millpond.server")


class Observer:
    """Pure ASGI: a client that hangs up is still seen through it."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, timeout_s: float, root_path: str = ""
    ) -> None:
        self._app = app
        self._root_path = root_path
        self._metrics = metrics
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._root_path:
            scope["root_path"] = self._root_path
        exchange = Exchange.begin(scope)
        id_header = (b"x-request-id", exchange.request_id.encode("ascii"))

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
            await send(message)

        with self._metrics.in_progress.track_inprogress():
            try:
                await self._answer(exchange, receive, send_noted)
            finally:
                self._tell(exchange)

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        """Run the application; whatever it raises becomes an answer if none has begun."""
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                await self._app(exchange.scope, receive, send)
            return
        except ClientDisconnect:
            exchange.status = exchange.status or HUNG_UP
            return
        except asyncio.CancelledError:  # the time to drain is over
            await self._fail(exchange, ApiError(503, "the server is shutting down"), receive, send)
            raise
        except Exception as error:
            if exchange.status is not None:
                raise
            if isinstance(error, TimeoutError) and limit.expired():
                answer = ApiError(
                    504,
                    f"not done within {self._timeout_s:g} s; send fewer texts a request",
                    code="timeout",
                )
            else:
                logger.exception("request %s failed", exchange.request_id)
                answer = ApiError.unexpected()
        await self._fail(exchange, answer, receive, send)

    async def _fail(
        self, exchange: Exchange, error: ApiError, receive: Receive, send: Send
    ) -> None:
        if exchange.status is None:
            await error_response(error)(exchange.scope, receive, send)

    def _tell(self, exchange: Exchange) -> None:
        self._metrics.answered(exchange)
        if access_logger.isEnabledFor(logging.INFO):
            fields = exchange.fields()
            access_logger.info(
                "%s %s %s",
                fields["method"],
                fields["path"],
                fields["status"],
                extra={"fields": fields},
            )
