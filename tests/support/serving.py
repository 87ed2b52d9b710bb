"""What the server's tests call it with: an application in this process, and requests to it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import httpx
import uvicorn
from fakes import PATIENCE_S, FakeRunner, scorer, start_engine
from fastapi import FastAPI
from uvicorn.server import ServerState

from millpond.server.app import create_app
from millpond.server.models import ServedModel
from millpond.server.process.connection import HttpConnection
from millpond.server.settings import AppSettings

NAME = "fake/model"  # as `fakes.fake_spec` calls it


@contextmanager
def fake_app(
    runner: FakeRunner | None = None, settings: AppSettings | None = None, **engine_options: Any
) -> Iterator[FastAPI]:
    """The application over one fake model, stopped whatever a test does."""
    runner = runner or FakeRunner()
    engine = start_engine(runner, **engine_options)
    try:
        yield create_app([ServedModel.of(engine)], settings)
    finally:
        runner.let()
        engine.close(drain=False)


@contextmanager
def fake_scoring_app(
    *labels: str,
    runner: FakeRunner | None = None,
    settings: AppSettings | None = None,
    beside: Sequence[ServedModel] = (),
    **engine_options: Any,
) -> Iterator[FastAPI]:
    """The same over a fake reranker, or with several labels a classifier, called `NAME`."""
    runner = runner or FakeRunner()
    engine = scorer(runner, *labels, **engine_options)
    try:
        yield create_app([ServedModel.of(engine), *beside], settings)
    finally:
        runner.let()
        engine.close(drain=False)


def client_of(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    """A client of the application, without a socket between them."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://millpond", **options)


def request(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """One request and its answer."""

    async def call() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(call())


def embed(app: FastAPI, body: dict[str, Any], **options: Any) -> httpx.Response:
    """`POST /v1/embeddings`."""
    return request(app, "POST", "/v1/embeddings", json=body, **options)


class Call:
    """One POST whose body is sent a part at a time, made on a running event loop."""

    def __init__(
        self,
        app: FastAPI,
        path: str = "/v1/embeddings",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._arriving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._body = b""
        self._status: int | None = None
        self.headers: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = loop.create_future()
        """Done once the application has asked for the body."""
        self.over: asyncio.Task[int | None] = loop.create_task(self._run(app, path, headers))
        """Its result is the answer's status."""

    def send(self, part: bytes, *, last: bool = False) -> None:
        """More of the body."""
        self._arriving.put_nowait({"type": "http.request", "body": part, "more_body": not last})

    def hang_up(self) -> None:
        """Be gone, and read no answer."""
        self._arriving.put_nowait({"type": "http.disconnect"})

    @property
    def error(self) -> dict[str, Any]:
        """Of the answer."""
        error: dict[str, Any] = json.loads(self._body)["error"]
        return error

    async def _run(
        self, app: FastAPI, path: str, headers: Sequence[tuple[bytes, bytes]]
    ) -> int | None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await app(scope, self._receive, self._answered)
        return self._status

    async def _receive(self) -> Any:
        if not self.started.done():
            self.started.set_result(None)
        return await self._arriving.get()

    async def _answered(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        self._body += message.get("body", b"")


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, after a look at its shape."""
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


@asynccontextmanager
async def listening(app: FastAPI, **limits: float) -> AsyncIterator[int]:
    """The application behind connections as the server has them; gives the port."""
    header_timeout_s = limits.pop("header_timeout_s", PATIENCE_S)
    config = uvicorn.Config(
        app,
        http=partial(HttpConnection, header_timeout_s=header_timeout_s),
        timeout_keep_alive=limits.pop("idle_timeout_s", PATIENCE_S),
        lifespan="off",
        log_config=None,
        **limits,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()

    def connection() -> Any:
        return config.http_protocol_class(
            config=config, server_state=state, app_state={}, _loop=loop
        )

    server = await loop.create_server(connection, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for one in list(state.connections):
            one.transport.abort()
        await asyncio.gather(*state.tasks, return_exceptions=True)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's end of a connection, on which it may send anything."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def post_bytes(body: bytes, *headers: bytes, path: bytes = b"/v1/embeddings") -> bytes:
    """A POST as it goes over the wire; its length is declared unless it goes in chunks."""
    lines = [b"POST %s HTTP/1.1" % path, b"Host: pond", *headers]
    if not any(b"chunked" in header for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the body of the next answer that declares its length."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
    return int(head.split()[1]), await reader.readexactly(int(length))
