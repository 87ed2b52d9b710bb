"""`HttpConnection`: uvicorn's HTTP/1.1 connection with limits on the size and time of headers.

It knows no routes. What it refuses is not a request yet and has no line in the access log.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..calls.disconnect import ON_DISCONNECT
from ..errors import ApiError, error_response
from .joined_writes import JoinedWrites

__all__ = ["MAX_HEAD_BYTES", "HttpConnection"]

logger = logging.getLogger("millpond.server")

MAX_HEAD_BYTES = 64 * 2**10  # of the request line and the headers, or of trailers
LINGER_S = 2.0  # closing a socket with unread bytes resets the connection, and the response is lost
PROBE_S = 0.5
_BODY_BYTES = 2**20  # of a body, buffered before the application is woken
_PART_BYTES = 16 * 2**10  # parsed at a time; a header may exceed its limit by as much
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpConnection(HttpToolsProtocol):
    """One connection, used on the event loop only.

    An `Upgrade` is ignored, as RFC 9110 section 7.8 allows. A client that closes its sending side
    after the request still gets its response.
    """

    def __init__(self, *, header_timeout_s: float, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._header_timeout_s = header_timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._receiving = False  # a message has begun and not ended
        self._in_head = False  # and its headers are incomplete
        self._head_bytes = 0  # names and values of the current message
        self._progressed = False  # whether the last part completed more than a piece of a header
        self._stalled_bytes = 0  # received since it did
        self._replay: bytes | None = None  # headers with an upgrade, without it
        self._refused = False
        self._is_lost = False
        self._watched: tuple[RequestResponseCycle, Callable[[], object]] | None = None

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._writes = JoinedWrites(transport)
        super().connection_made(cast(asyncio.Transport, self._writes))
        self._set_timer(self.timeout_keep_alive, self._on_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._is_lost = True
        self._tell_of_disconnect()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self._refused:
            in_body = self._receiving and not self._in_head
            size = len(data) if in_body else _PART_BYTES
            self._receive(data[:size])
            data = data[size:]

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to stay open, to send an outstanding response. TLS has no half-closed state."""
        if (
            self._refused
            or self.scheme == "https"
            or not self._response_is_due
            or self.cycle.more_body
        ):
            return False
        self.cycle.keep_alive = False
        self._set_timer(PROBE_S, self._probe)
        return True

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        self._progressed = self._in_head = True
        self._head_bytes = 0
        self._begin_to_receive()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        if self._in_head:  # trailers are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._progressed = True
        self._in_head = False
        self._stop_timer()
        if self.parser.should_upgrade():
            self._replay = self._head_without_upgrade()
        else:
            super().on_headers_complete()
            cycle = weakref.ref(self.cycle)  # whose scope this is
            self.scope[ON_DISCONNECT] = partial(self._watch, cycle)  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        """The application is woken for large parts, as it contends with the engine's threads."""
        self._progressed = True
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > _BODY_BYTES:
            self.flow.pause_reading()
            self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._progressed = True
        self._receiving = False
        self._stop_timer()
        if self._replay is None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._writes.flush()
        super().on_response_complete()
        if self._receiving and self._timer is None:  # the rest of a body that is not read
            self._set_timer(self._header_timeout_s, self._on_timeout)

    def _receive(self, part: bytes) -> None:
        self._begin_to_receive()
        self._progressed = False
        try:
            self._feed(part)
        except httptools.HttpParserError:
            self._refuse(self._unreadable())
            return
        self._stalled_bytes = 0 if self._progressed else self._stalled_bytes + len(part)
        if self._stalled_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())

    def _feed(self, data: bytes) -> None:
        """Parse. Headers with an upgrade are parsed again without it, since the parser would take
        what follows for another protocol."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self._replay is None or self.parser.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("a tunnel was requested") from upgrade
                data = self._replay + data[upgrade.args[0] :]
                self._replay = None
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_upgrade(self) -> bytes:
        target = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [b"%s %s HTTP/%s" % target]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(one for one in options if one.lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    # Disconnects.

    def _watch(
        self, running: weakref.ref[RequestResponseCycle], give_up: Callable[[], object] | None
    ) -> None:
        """Have `give_up` called once the client of a request is gone, as `ON_DISCONNECT` says."""
        cycle = running()
        self._watched = None if give_up is None or cycle is None else (cycle, give_up)
        if give_up is not None:
            self.flow.resume_reading()  # or the end of the connection would not be read
            self._tell_of_disconnect()

    def _tell_of_disconnect(self) -> None:
        if self._watched is not None:
            cycle, give_up = self._watched
            cycle.disconnected |= self._is_lost  # uvicorn's own concerns the last request alone
            if cycle.disconnected:
                give_up()

    # Limits.

    @property
    def _response_is_due(self) -> bool:
        """Whether a request has begun and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _begin_to_receive(self) -> None:
        if not self._receiving:
            self._receiving = True
            self._set_timer(self._header_timeout_s, self._on_timeout)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise OverflowError  # to the parser, which stops

    def _on_timeout(self) -> None:
        if self._response_is_due:  # TimeoutMiddleware limits it
            self._set_timer(self._header_timeout_s, self._on_timeout)
        elif self._in_head:
            self._refuse(_head_too_late(self._header_timeout_s))
        else:
            self.transport.close()

    def _probe(self) -> None:
        """Write something: unless it is only half-closed, the client resets the connection."""
        if self._response_is_due and not self.transport.is_closing():
            quiet = not self.pipeline and not self.cycle.response_started
            if quiet and self.cycle.scope["http_version"] == "1.1":
                self.transport.write(_CONTINUE)
            self._set_timer(PROBE_S, self._probe)

    def _set_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Refusals.

    def _unreadable(self) -> ApiError:
        return _head_too_large() if self._head_bytes > MAX_HEAD_BYTES else _not_http()

    def _refuse(self, error: ApiError) -> None:
        """Respond and read no more. Complete requests before it are answered first."""
        self._refused = True
        self._stop_timer()
        logger.info("connection refused with %d: %s", error.status_code, error.detail)
        if self._response_is_due:
            if not self.cycle.more_body:
                self.cycle.keep_alive = False
                return
            if self.pipeline or self.cycle.response_started:
                self.transport.close()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._tell_of_disconnect()
        self.transport.write(self._encoded(error))
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_timer(LINGER_S, self.transport.close)

    def _encoded(self, error: ApiError) -> bytes:
        status = HTTPStatus(error.status_code)
        body = bytes(error_response(error).body)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [b"%s: %s" % header for header in headers]
        return b"\r\n".join([*lines, b"", body])

    def __repr__(self) -> str:
        return (
            f"HttpConnection(client={self.client}, receiving={self._receiving}, "
            f"response_is_due={self._response_is_due})"
        )


def _not_http() -> ApiError:
    return ApiError(400, "the data sent is not HTTP/1.1", code="bad_http")


def _head_too_large() -> ApiError:
    return ApiError(
        431, f"the headers are larger than {MAX_HEAD_BYTES} bytes", code="headers_too_large"
    )


def _head_too_late(timeout_s: float) -> ApiError:
    return ApiError(
        408, f"the headers were not complete within {timeout_s:g} s", code="headers_too_late"
    )
