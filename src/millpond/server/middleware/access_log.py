"""`AccessLogMiddleware`: the outermost middleware.

It gives a request its id and its prefix, and tells the access log and the metrics how it went.
"""

from __future__ import annotations

import logging
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..drain import DrainState
from ..metrics import Metrics
from .request_context import RequestContext

__all__ = ["AccessLogMiddleware"]

access_logger = logging.getLogger("millpond.access")


class AccessLogMiddleware:
    """Pure ASGI: a client that hangs up is still seen through it."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, lifecycle: DrainState, root_path: str = ""
    ) -> None:
        self._app = app
        self._root_path = root_path
        self._metrics = metrics
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._root_path:
            scope["root_path"] = self._root_path
        exchange = RequestContext.begin(scope, accepted=not self._lifecycle.draining)
        id_header = (b"x-request-id", exchange.request_id.encode("ascii"))

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
            await send(message)

        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, send_noted)
        finally:
            self._metrics.in_progress.dec()
            self._tell(exchange)

    def _tell(self, exchange: RequestContext) -> None:
        self._metrics.answered(exchange)
        if access_logger.isEnabledFor(logging.INFO):
            fields = exchange.fields()
            access_logger.info(
                "%s %s %s",
                fields["method"],
                quote(fields["path"], errors="backslashreplace"),  # as it stood in the request
                fields["status"],
                extra={"fields": fields},
            )

    def __repr__(self) -> str:
        return f"AccessLogMiddleware(root_path={self._root_path!r}, lifecycle={self._lifecycle!r})"
