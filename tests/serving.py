"""What the server's tests call it with: an application in this process, and requests to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from fakes import FakeRunner, start_engine
from millpond.server.app import create_app
from millpond.server.served import ServedModel
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


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, after a look at its shape."""
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"]
    return error
