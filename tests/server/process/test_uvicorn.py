"""The private parts of uvicorn that `connection` and `process` use exist."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from serving import connected, listening, post_bytes, read_answer
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OVERRIDDEN = (
    *("connection_made", "connection_lost", "data_received", "eof_received"),
    *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body"),
    *("on_message_complete", "on_response_complete"),
)
OF_A_CONNECTION = (
    *("client", "cycle", "flow", "headers", "loop", "parser", "pipeline", "scheme"),
    *("server_state", "timeout_keep_alive", "transport", "url", "_unset_keepalive_if_required"),
)
OF_A_CYCLE = (
    *("body", "disconnected", "keep_alive", "message_event", "more_body"),
    *("response_complete", "response_started", "scope"),
)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_a_method_that_is_overridden_exists(name: str) -> None:
    assert callable(getattr(HttpToolsProtocol, name))


def test_an_attribute_that_is_used_exists() -> None:
    missing: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        cycle = receive.__self__
        connection = cycle.transport.get_protocol()
        assert connection.cycle is cycle
        assert connection in connection.server_state.connections
        missing.extend(name for name in OF_A_CONNECTION if not hasattr(connection, name))
        missing.extend(name for name in OF_A_CYCLE if not hasattr(cycle, name))
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> int:
        async with listening(app) as port, connected(port) as (reader, writer):  # type: ignore[arg-type]
            writer.write(post_bytes(b"{}"))
            return (await read_answer(reader))[0]

    assert asyncio.run(ask()) == 200
    assert missing == []
