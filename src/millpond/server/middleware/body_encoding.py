"""`BodyEncodingMiddleware`: compressed request bodies, decoded up to the largest body."""

from __future__ import annotations

import zlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ApiError, shown

__all__ = ["BodyEncodingMiddleware"]

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits
_FORMATS = {"gzip": (_GZIP,), "x-gzip": (_GZIP,), "deflate": (_ZLIB, _RAW)}
_MOST_MEMBERS = 100  # of one gzip body; each copies the rest of the body


class BodyEncodingMiddleware:
    """Decodes gzip and deflate. Raises `ApiError` from `receive`: 415 for another coding, 413 for a
    body that is larger than the limit once decoded, 400 for an invalid one."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        coding = _coding(scope)
        if coding == "identity":
            await self._app(scope, receive, send)
            return
        decoder = _Decoder(coding, self._max_bytes) if coding in _FORMATS else None

        async def receive_decoded() -> Message:
            if decoder is None:
                raise _unknown(coding)
            message = await receive()
            if message["type"] == "http.request":
                is_last = not message.get("more_body", False)
                return {**message, "body": decoder.decode(message.get("body", b""), last=is_last)}
            return message

        await self._app(scope, receive_decoded, send)


def _coding(scope: Scope) -> str:
    named = ",".join(Headers(scope=scope).getlist("content-encoding")).lower()
    return ", ".join(part.strip() for part in named.split(",") if part.strip()) or "identity"


class _Decoder:
    """One body's. Its output never exceeds the limit by more than a byte."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        self._coding = coding
        self._max_bytes = max_bytes
        self._formats = list(_FORMATS[coding])
        self._members = 0
        self._decoded = 0
        self._zlib = self._next_member()

    def decode(self, part: bytes, *, last: bool) -> bytes:
        """The decoded bytes of the next part."""
        try:
            decoded = b"".join(self._decode(part))
        except zlib.error as error:
            raise self._invalid() from error
        if last and not self._zlib.eof:
            raise self._invalid()
        return decoded

    def _decode(self, part: bytes) -> list[bytes]:
        decoded = []
        while part:
            if self._zlib.eof:
                self._zlib = self._next_member()
            decoded.append(self._inflate(part))
            self._decoded += len(decoded[-1])
            if self._decoded > self._max_bytes:
                raise ApiError(
                    413,
                    f"the body is larger than {self._max_bytes} bytes once it is decoded; send "
                    "fewer texts a request",
                    headers={"connection": "close"},
                )
            part = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
        return decoded

    def _inflate(self, part: bytes) -> bytes:
        room = self._max_bytes - self._decoded + 1
        try:
            return self._zlib.decompress(part, room)
        except zlib.error:
            if self._decoded or len(self._formats) == 1:
                raise
        # "deflate" is zlib's format, but some clients send raw deflate.
        self._formats.pop(0)
        self._zlib = self._next_member()
        return self._zlib.decompress(part, room)

    def _next_member(self) -> zlib._Decompress:
        self._members += 1
        if self._members > _MOST_MEMBERS:
            raise self._invalid()
        return zlib.decompressobj(self._formats[0])

    def _invalid(self) -> ApiError:
        return ApiError(
            400, f"the body is not {self._coding}, as content-encoding says", code="bad_encoding"
        )


def _unknown(coding: str) -> ApiError:
    return ApiError(
        415,
        f"content-encoding: {shown(coding)} is not supported; send gzip, deflate, or the body "
        "as it is without that header",
        headers={"accept-encoding": "gzip, deflate", "connection": "close"},
    )
