"""`BodyMiddleware`: request bodies up to the largest size, compressed ones decoded."""

from __future__ import annotations

import re
import zlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ApiError, error_response, shown

__all__ = ["BodyMiddleware"]

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits
_FORMATS = {"gzip": (_GZIP,), "x-gzip": (_GZIP,), "deflate": (_ZLIB, _RAW)}
_MOST_MEMBERS = 100  # of one gzip body; each copies the rest of the body
_LENGTH = re.compile("[0-9]{1,19}")  # int() refuses thousands of digits
_CLOSE = {"connection": "close"}


class BodyMiddleware:
    """Decodes gzip and deflate. Raises `ApiError` from `receive`, for the application's error
    handlers: 415 for another coding, 413 for a body that is larger than the limit, declared, sent
    in chunks or once decoded, 400 for an invalid one.

    Starlette's own replaces every response to a body whose declared length is too large by one in
    plain text, so its 413 could not be an error of OpenAI's kind.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared, coding = _declared(scope), _coding(scope)
        if not _LENGTH.fullmatch(declared):
            message = "content-length is not a number of bytes"
            refusal = ApiError(400, message, code="invalid_header", headers=_CLOSE)
            await error_response(refusal)(scope, receive, send)
            return
        decoder = _Decoder(coding, self._max_bytes) if coding in _FORMATS else None
        received = 0

        async def receive_body() -> Message:
            nonlocal received
            if decoder is None and coding != "identity":
                raise _unknown(coding)
            if int(declared) > self._max_bytes:
                raise _too_large(self._max_bytes)
            message = await receive()
            part = message.get("body", b"")
            received += len(part)
            if received > self._max_bytes:
                raise _too_large(self._max_bytes)
            if decoder is None or message["type"] != "http.request":
                return message
            is_last = not message.get("more_body", False)
            return {**message, "body": decoder.decode(part, last=is_last)}

        await self._app(scope, receive_body, send)


def _declared(scope: Scope) -> str:
    """The length that the headers say, 0 where they say none."""
    lengths = (value for name, value in scope["headers"] if name == b"content-length")
    return next(lengths, b"0").decode("latin-1")


def _coding(scope: Scope) -> str:
    named = [value for name, value in scope["headers"] if name == b"content-encoding"]
    if not named:
        return "identity"
    parts = b",".join(named).decode("latin-1").lower().split(",")
    return ", ".join(part.strip() for part in parts if part.strip()) or "identity"


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
                raise _too_large(self._max_bytes, " once it is decoded")
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
        headers={"accept-encoding": "gzip, deflate", **_CLOSE},
    )


def _too_large(max_bytes: int, when: str = "") -> ApiError:
    message = f"the body is larger than {max_bytes} bytes{when}; send fewer texts a request"
    return ApiError(413, message, headers=_CLOSE)
