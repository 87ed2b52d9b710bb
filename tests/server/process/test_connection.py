"""`HttpConnection`: every whole request is answered, and nothing that is withheld is waited for."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fakes import PATIENCE_S, FakeRunner, held_engine
from fastapi import FastAPI
from serving import connected, fake_app, listening, post_bytes, read_answer

from millpond.server.app import create_app
from millpond.server.models import ServedModel
from millpond.server.process import connection
from millpond.server.process.connection import MAX_HEAD_BYTES

BODY = b'{"input": "a"}'
CHUNKED = b'5\r\n{"inp\r\n9\r\nut": "a"}\r\n0\r\n\r\n'
LENGTH_0 = (b"content-length", b"0")
GET = b"GET /version HTTP/1.1\r\nHost: pond\r\n"


@pytest.fixture
def app() -> Iterator[FastAPI]:
    with fake_app() as app:
        yield app


def talk(app: FastAPI, dialogue: Callable[[Any, Any], Awaitable[Any]], **limits: float) -> Any:
    """What a dialogue of a client's gives, over a connection of its own."""

    async def run() -> Any:
        async with listening(app, **limits) as port, connected(port) as (reader, writer):
            return await dialogue(reader, writer)

    return asyncio.run(run())


def answers(app: Any, *sent: bytes, count: int = 1) -> list[tuple[int, bytes]]:
    """So many answers to what is sent in these parts."""

    async def dialogue(reader: Any, writer: Any) -> Any:
        for part in sent:
            writer.write(part)
            await writer.drain()
        return [await read_answer(reader) for _ in range(count)]

    found: list[tuple[int, bytes]] = talk(app, dialogue)
    return found


def refusal(app: FastAPI, *sent: bytes, **limits: float) -> tuple[int, str]:
    """The status and the code of the answer after which the server hangs up."""

    async def dialogue(reader: Any, writer: Any) -> Any:
        for part in sent:
            writer.write(part)
        answer = await read_answer(reader)
        assert await reader.read() == b""
        return answer

    status, body = talk(app, dialogue, **limits)
    return status, json.loads(body)["error"]["code"]


OFFERS = [
    (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ"),
    (b"connection: upgrade", b"UPGRADE: websocket"),
    (b"Connection: keep-alive, UPGRADE", b"Upgrade: TLS/1.0, h2c"),
    (b"Upgrade: h2c", b"Upgrade: foo/2", b"Connection: keep-alive", b"Connection: Upgrade"),
    (b"Upgrade: h2c",),
    (b"Connection: upgrade",),
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("sizes", [None, 7], ids=["at once", "a few bytes at a time"])
def test_an_upgrade_that_is_offered_is_ignored_and_the_request_answered(
    app: FastAPI, offer: tuple[bytes, ...], sizes: int | None
) -> None:
    with_length = post_bytes(BODY, *offer)
    in_chunks = post_bytes(CHUNKED, *offer, b"Transfer-Encoding: chunked")
    sent = with_length + in_chunks + GET + b"\r\n" + with_length
    step = sizes or len(sent)
    parts = [sent[start : start + step] for start in range(0, len(sent), step)]
    found = answers(app, *parts, count=4)
    assert [status for status, _ in found] == [200, 200, 200, 200]
    assert found[0][1] == found[1][1] == found[3][1]
    assert b"version" in found[2][1]


def test_an_upgrade_with_a_close_is_closed_after_the_answer(app: FastAPI) -> None:
    async def dialogue(reader: Any, writer: Any) -> Any:
        writer.write(post_bytes(BODY, b"Connection: close, Upgrade", b"Upgrade: h2c"))
        status, _ = await read_answer(reader)
        return status, await reader.read()

    assert talk(app, dialogue) == (200, b"")


def test_a_tunnel_is_refused(app: FastAPI) -> None:
    sent = b"CONNECT pond:80 HTTP/1.1\r\nHost: pond\r\n\r\n"
    assert refusal(app, sent) == (400, "bad_http")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 2 * MAX_HEAD_BYTES,
        b"GET /health HTTP/1.1\r\n" + b"X: aaaaaaaa\r\n" * 8000,
        b"GET /health HTTP/1.1\r\n" + b"X: aaaaaaaa\r\n" * 8000 + b"\r\n",
        b"GET /health HTTP/1.1\r\n" + b"a" * 2 * MAX_HEAD_BYTES,
        b"GET /" + b"a" * 2 * MAX_HEAD_BYTES,
        b"GET /" + b"a" * 2 * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"\r\n" * 2 * MAX_HEAD_BYTES,
        post_bytes(b"0\r\n" + b"X: aaaaaaaa\r\n" * 8000, b"Transfer-Encoding: chunked"),
        post_bytes(b"0\r\nX: " + b"a" * 2 * MAX_HEAD_BYTES, b"Transfer-Encoding: chunked"),
        post_bytes(b"1;x=" + b"a" * 2 * MAX_HEAD_BYTES, b"Transfer-Encoding: chunked"),
    ],
    ids=lambda sent: f"{sent[:24]!r} … {len(sent)} bytes",
)
def test_a_header_that_never_ends_is_refused(app: FastAPI, sent: bytes) -> None:
    parts = [sent[start : start + 10_000] for start in range(0, len(sent), 10_000)]
    assert refusal(app, *parts) == (431, "headers_too_large")


def test_a_large_header_below_the_bound_is_taken(app: FastAPI) -> None:
    header = b"X: " + b"a" * (MAX_HEAD_BYTES - 1000) + b"\r\n\r\n"
    assert [status for status, _ in answers(app, GET + header, GET + header, count=2)] == [200] * 2


def test_a_body_in_chunks_of_one_byte_is_no_header(app: FastAPI) -> None:
    text = json.dumps({"input": "word " * 4000}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n"
    ((status, _),) = answers(app, post_bytes(chunks, b"Transfer-Encoding: chunked"))
    assert status == 200


def test_a_trailer_is_no_header(app: FastAPI) -> None:
    chunks = CHUNKED.removesuffix(b"\r\n") + b"Content-Type: text/plain\r\n\r\n"
    ((status, _),) = answers(app, post_bytes(chunks, b"Transfer-Encoding: chunked"))
    assert status == 200


def test_garbage_behind_a_request_does_not_cost_its_answer(app: FastAPI) -> None:
    async def dialogue(reader: Any, writer: Any) -> Any:
        writer.write(post_bytes(BODY) + b"\x16\x03\x01\r\n")
        status, _ = await read_answer(reader)
        return status, await reader.read()

    assert talk(app, dialogue) == (200, b"")


def test_a_broken_body_is_refused(app: FastAPI) -> None:
    sent = post_bytes(b"no size\r\n", b"Transfer-Encoding: chunked")
    assert refusal(app, sent) == (400, "bad_http")


# Who sends nothing, or not all.


def test_who_sends_nothing_is_hung_up_on(app: FastAPI) -> None:
    async def dialogue(reader: Any, writer: Any) -> Any:
        return await reader.read()

    assert talk(app, dialogue, idle_timeout_s=0.01) == b""


@pytest.mark.parametrize("sent", [b"G", GET, post_bytes(BODY) + GET], ids=["1", "2", "3"])
def test_half_a_header_is_not_waited_for(app: FastAPI, sent: bytes) -> None:
    async def dialogue(reader: Any, writer: Any) -> Any:
        writer.write(sent)
        if sent.startswith(b"POST"):
            assert (await read_answer(reader))[0] == 200
        status, _ = await read_answer(reader)
        return status, await reader.read()

    assert talk(app, dialogue, header_timeout_s=0.05) == (408, b"")


def test_the_rest_of_a_body_that_was_answered_is_not_waited_for(app: FastAPI) -> None:
    async def dialogue(reader: Any, writer: Any) -> Any:
        writer.write(b"POST /nowhere HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        status, _ = await read_answer(reader)
        return status, await reader.read()

    assert talk(app, dialogue, header_timeout_s=0.01) == (404, b"")


def test_half_a_header_does_not_cost_the_answer_before_it() -> None:
    runner = FakeRunner()

    async def dialogue(reader: Any, writer: Any) -> Any:
        writer.write(post_bytes(BODY) + GET)
        await asyncio.to_thread(runner.wait_for_batches, 1)
        asyncio.get_running_loop().call_later(0.05, runner.let)  # the header is late by then
        return await read_answer(reader)

    with held_engine(runner) as engine:
        app = create_app([ServedModel.of(engine)])
        status, _ = talk(app, dialogue, header_timeout_s=0.01)
    assert status == 200


# Who shuts one side down, and who is gone.


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_half_closes_is_answered(app: FastAPI, requests: int) -> None:
    async def dialogue(reader: Any, writer: Any) -> Any:
        writer.write(post_bytes(BODY) * requests)
        writer.write_eof()
        found = [(await read_answer(reader))[0] for _ in range(requests)]
        return found, await reader.read()

    assert talk(app, dialogue) == ([200] * requests, b"")


def test_half_a_request_before_the_end_is_hung_up_on(app: FastAPI) -> None:
    async def dialogue(reader: Any, writer: Any) -> Any:
        writer.write(post_bytes(BODY)[:-1])
        writer.write_eof()
        return await reader.read()

    assert talk(app, dialogue) == b""


def test_a_client_that_hangs_up_is_told_from_one_that_half_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "PROBE_S", 0.01)
    runner = FakeRunner(max_batch_tokens=1)

    async def ask(app: FastAPI) -> bytes:
        async with listening(app) as port, connected(port) as (waiting, waiter):
            waiter.write(post_bytes(b'{"input": "stays"}'))
            waiter.write_eof()
            await waiting.readuntil(b"100 Continue\r\n\r\n")
            async with connected(port) as (_, writer):
                writer.write(post_bytes(b'{"input": "gone"}'))
                while engine.stats().waiting_interactive_tokens < 2:
                    await asyncio.sleep(0)
            while engine.stats().cancelled_texts == 0:
                await asyncio.sleep(0.001)
            runner.let()
            return await waiting.read()

    with held_engine(runner) as engine:
        app = create_app([ServedModel.of(engine)])
        engine.submit("first")
        runner.wait_for_batches(1)
        answer = asyncio.run(ask(app))
        engine.embed("last")
    assert b"HTTP/1.1 200 OK" in answer
    assert runner.ran == ["first", "stays", "last"]


def test_a_connection_that_is_reset_cancels_a_request_with_another_behind_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner = FakeRunner(max_batch_tokens=1)

    async def ask(app: FastAPI) -> None:
        async with listening(app) as port:
            async with connected(port) as (_, writer):
                writer.write(post_bytes(b'{"input": "gone"}') + post_bytes(b'{"input": "behind"}'))
                while engine.stats().waiting_interactive_tokens < 1:
                    await asyncio.sleep(0)
                reset = struct.pack("ii", 1, 0)  # at once, without the end of what was sent
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            while engine.stats().cancelled_texts == 0:
                await asyncio.sleep(0.001)

    with held_engine(runner) as engine:
        app = create_app([ServedModel.of(engine)])
        engine.submit("first")
        runner.wait_for_batches(1)
        asyncio.run(asyncio.wait_for(ask(app), PATIENCE_S))
        runner.let()
        engine.embed("last")
    assert runner.ran == ["first", "last"]
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_a_large_body_is_told_to_the_application_in_few_parts() -> None:
    body = json.dumps({"input": "a" * 5 * 2**20}).encode()
    parts: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            parts.append(len(message["body"]))
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [LENGTH_0]})
        await send({"type": "http.response.body"})

    ((status, _),) = answers(app, post_bytes(body))
    assert status == 200
    assert sum(parts) == len(body)
    assert len(parts) <= 6
