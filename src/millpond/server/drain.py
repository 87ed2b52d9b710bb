"""`DrainState`: whether the server still takes requests, and the end of those it took."""

from __future__ import annotations

import asyncio

from .errors import ApiError
from .middleware.request_context import RequestContext

__all__ = ["DrainState"]


class DrainState:
    """Taking requests, draining, or over. Written by the process that runs the server alone."""

    def __init__(self) -> None:
        self.draining = False
        self.over = False  # the time to drain has passed
        self.limits: set[asyncio.Timeout] = set()  # of requests being answered; AnswerGuard's

    def require_open(self) -> None:
        """Raises `ApiError` 503 once the server has been told to stop."""
        if self.draining:
            raise self.refusal()

    def require_accepted(self, exchange: RequestContext) -> None:
        """Raises `ApiError` 503 for a request that began after that, however late its body is."""
        if not exchange.accepted:
            raise self.refusal()

    @staticmethod
    def refusal() -> ApiError:
        """What is answered instead."""
        return ApiError(
            503,
            "the server is shutting down; send the request to another",
            code="draining",
            headers={"connection": "close"},
        )

    def end(self) -> None:
        """Cut off every request that has no answer yet. On the event loop."""
        self.over = True
        now_s = asyncio.get_running_loop().time()
        for limit in self.limits:
            if not limit.expired():
                limit.reschedule(now_s)

    def __repr__(self) -> str:
        return (
            f"DrainState(draining={self.draining}, over={self.over}, requests={len(self.limits)})"
        )
