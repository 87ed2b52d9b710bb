"""`DrainState`: whether the server takes requests, and the timeouts of those in progress."""

from __future__ import annotations

import asyncio

from .errors import ApiError
from .request_context import RequestContext

__all__ = ["DrainState"]


class DrainState:
    """Open, draining, or over. Written only by the process that runs the server."""

    def __init__(self) -> None:
        self.draining = False
        self.over = False  # the time to drain has passed
        self.limits: set[asyncio.Timeout] = set()  # of requests in progress; TimeoutMiddleware's

    def require_open(self) -> None:
        """Raises `ApiError` 503 while draining."""
        if self.draining:
            raise self.refusal()

    def require_accepted(self, context: RequestContext) -> None:
        """Raises `ApiError` 503 for a request whose headers arrived while draining."""
        if not context.accepted:
            raise self.refusal()

    @staticmethod
    def refusal() -> ApiError:
        """The response while draining."""
        return ApiError(
            503,
            "the server is shutting down; send the request to another",
            code="draining",
            headers={"connection": "close"},
        )

    def end(self) -> None:
        """Time out every request without a response. To be called on the event loop."""
        self.over = True
        now_s = asyncio.get_running_loop().time()
        for limit in self.limits:
            if not limit.expired():
                limit.reschedule(now_s)

    def __repr__(self) -> str:
        return (
            f"DrainState(draining={self.draining}, over={self.over}, requests={len(self.limits)})"
        )
