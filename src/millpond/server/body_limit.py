"""`BodyLimit`: no request body grows beyond a bound, whatever its headers say."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError

__all__ = ["BodyLimit"]


class BodyLimit:
    """Raises `ApiError` 413 out of `receive`, so that the application answers it as its own."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_long = declared.isdecimal() and int(declared) > self._max_bytes
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
