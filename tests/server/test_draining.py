"""A server that was told to stop: what it still answers, and what it does with the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakes import FakeRunner, held_engine
from fastapi import FastAPI
from serving import Call

from millpond.server.app import create_app
from millpond.server.drain import DrainState
from millpond.server.models import ServedModel

BODY = b'{"input": "a"}'


@pytest.fixture
def drain() -> DrainState:
    return DrainState()


@pytest.fixture
def call(drain: DrainState) -> Any:
    """Run `act(application)` on an event loop, with an engine that answers."""
    runner = FakeRunner()
    with held_engine(runner) as engine:
        runner.let()
        app = create_app([ServedModel.of(engine)], drain=drain)
        yield lambda act: asyncio.run(act(app))


Act = Callable[[Callable[[FastAPI], Awaitable[None]]], None]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", BODY),
        ("/tokenize", b'{"prompt": "a"}'),
        ("/detokenize", b'{"tokens": []}'),
    ],
)
def test_a_request_that_has_begun_to_arrive_is_answered(
    path: str, body: bytes, call: Act, drain: DrainState
) -> None:
    async def act(app: FastAPI) -> None:
        begun = Call(app, path)
        begun.send(body[:5])
        await begun.started
        drain.draining = True
        late = Call(app, path)
        late.send(body, last=True)
        assert (await late.over, late.error["code"]) == (503, "draining")
        begun.send(body[5:], last=True)
        assert await begun.over == 200

    call(act)


def test_a_request_that_stops_arriving_is_told_so_at_the_end(
    call: Act, drain: DrainState, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(app: FastAPI) -> None:
        stalled = Call(app)
        stalled.send(BODY[:5])
        await stalled.started
        drain.draining = True
        drain.end()
        assert await stalled.over == 503
        assert stalled.error["code"] == "draining"
        assert stalled.headers["connection"] == "close"
        assert repr(drain) == "DrainState(draining=True, over=True, requests=0)"

    with caplog.at_level(logging.INFO):
        call(act)
    assert [record for record in caplog.records if record.exc_info] == []


def test_what_waits_for_the_engine_is_told_so_at_the_end_and_is_taken_out(
    drain: DrainState,
) -> None:
    runner = FakeRunner(max_batch_tokens=1)

    async def act(app: FastAPI) -> None:
        waiting = Call(app)
        waiting.send(BODY, last=True)
        while engine.stats().waiting_interactive_tokens == 0:
            await asyncio.sleep(0)
        drain.draining = True
        drain.end()
        assert (await waiting.over, waiting.error["code"]) == (503, "draining")

    with held_engine(runner) as engine:
        app = create_app([ServedModel.of(engine)], drain=drain)
        engine.submit("first")
        runner.wait_for_batches(1)
        asyncio.run(act(app))
        runner.let()
        engine.embed("last")
        assert runner.ran == ["first", "last"]
