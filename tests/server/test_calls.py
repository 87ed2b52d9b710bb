"""What a request with one short text costs the event loop in Python: calls of functions, and cycles
for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from pathlib import Path

import fastapi
import pytest
import starlette
import uvicorn
from counted_calls import counted_calls
from fastapi import FastAPI
from serving import connected, fake_app, listening, post_bytes, read_answer

import millpond

BODY = b'{"input": "one short text"}'
OF_THE_SERVER = tuple(str(Path(each.__file__).parent) for each in (fastapi, starlette, uvicorn))
OURS = str(Path(millpond.__file__).parent)
MOST_CALLS, MOST_OF_OTHERS = 270, 70


def test_a_request_costs_the_event_loop_few_calls() -> None:
    async def run(app: FastAPI) -> Counter[tuple[str, str]]:
        async with listening(app) as port, connected(port) as (reader, writer):
            for _ in range(2):  # the first finds out what later ones know
                writer.write(post_bytes(BODY))
                assert (await read_answer(reader))[0] == 200
            with counted_calls(OURS, *OF_THE_SERVER) as calls:
                writer.write(post_bytes(BODY))
                assert (await read_answer(reader))[0] == 200
        return calls

    with fake_app() as app:
        calls = asyncio.run(run(app))
    of_others = {call: calls[call] for call in calls if not call[0].startswith(OURS)}
    assert 100 < calls.total() <= MOST_CALLS, calls.most_common()
    assert sum(of_others.values()) <= MOST_OF_OTHERS, of_others


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (BODY, 200),
        (b"{", 400),
        (b'{"input": ["a", 1]}', 400),
        (b'{"input": "a", "model": "b"}', 404),
    ],
)
def test_a_request_leaves_nothing_for_the_garbage_collector(body: bytes, status: int) -> None:
    requests = 20

    async def run(app: FastAPI) -> int:
        async with listening(app) as port, connected(port) as (reader, writer):
            for turn in range(requests + 2):
                if turn == 2:
                    gc.collect()
                    gc.disable()
                writer.write(post_bytes(body))
                assert (await read_answer(reader))[0] == status
            return gc.collect()

    with fake_app() as app:
        try:
            found = asyncio.run(run(app))
        finally:
            gc.enable()
    assert found < requests
