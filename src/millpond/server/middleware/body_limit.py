"""`BodyLimit`: no request body grows beyond a bound, whatever its headers say."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ApiError, error_response

__all__ = ["BodyLimit"]

_LENGTH = re.compile("[0-9]{1,19}")  # Python reads no number of thousands of digits


class BodyLimit:
    """Raises `ApiError` 413 out of `receive`, so that the application answers it as its own."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
        "content-length is no number of bytes",
        code="invalid_header",
        headers={"connection": "close"},
    )
