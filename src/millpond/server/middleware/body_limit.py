"""`BodyLimitMiddleware`: the largest request body, declared or sent in chunks.

Starlette's own replaces every response to a body whose declared length is too large by one in plain
text, so its 413 could not be an error of OpenAI's kind.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ApiError, error_response

__all__ = ["BodyLimitMiddleware"]

_LENGTH = re.compile("[0-9]{1,19}")  # int() refuses thousands of digits


class BodyLimitMiddleware:
    """Raises `ApiError` 413 from `receive`, for the application's error handlers."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = Headers(scope=scope).get("content-length", "0")
        if not _LENGTH.fullmatch(declared):
            await error_response(_no_length())(scope, receive, send)
            return
        too_long = int(declared) > self._max_bytes
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            if too_long:
                raise self._refusal()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, receive_counted, send)

    def _refusal(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self._max_bytes} bytes; send fewer texts a request",
            headers={"connection": "close"},
        )


def _no_length() -> ApiError:
    return ApiError(
        400,
        "content-length is not a number of bytes",
        code="invalid_header",
        headers={"connection": "close"},
    )
