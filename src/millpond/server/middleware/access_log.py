"""`AccessLogMiddleware`, the outermost: request ids, root path, spans, access log and metrics."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..drain import DrainState
from ..metrics import Metrics
from ..request_context import RequestContext
from ..tracing import Tracing

__all__ = ["AccessLogMiddleware"]

access_logger = logging.getLogger("millpond.access")


class AccessLogMiddleware:
    """Pure ASGI, so that the application still sees a client that disconnects."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        drain: DrainState,
        tracing: Tracing | None = None,
        root_path: str = "",
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._root_path = root_path
        self._metrics = metrics
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root_path:
            scope["root_path"] = self._root_path
        context = RequestContext.begin(scope, accepted=not self._drain.draining)
        id_header = (b"x-request-id", context.request_id.encode("ascii"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
            await send(message)

        self._metrics.in_progress.inc()
        try:
            with nullcontext() if self._tracing is None else self._tracing.request(context):
                await self._app(scope, receive, send_with_id)
        finally:
            self._metrics.in_progress.dec()
            self._record(context)
            context.end()

    def _record(self, context: RequestContext) -> None:
        self._metrics.answered(context)
        if access_logger.isEnabledFor(logging.INFO):
            fields = context.fields()
            path = quote(fields["path"], errors="backslashreplace")  # as in the request line
            message = (fields["method"], path, fields["status"])
            # `info` would walk up the stack for the line of code that logs.
            record = access_logger.makeRecord(
                *(access_logger.name, logging.INFO, __file__, 0, "%s %s %s", message, None),
                extra={"fields": fields},
            )
            access_logger.handle(record)

    def __repr__(self) -> str:
        return f"AccessLogMiddleware(root_path={self._root_path!r}, drain={self._drain!r})"
