"""Large answers are written in slices, between which other requests have the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import orjson
import pytest
from fakes import DIMENSION, vectors_for
from serving import client_of, embed, fake_app

from millpond import Engine
from millpond.server.calls import encoding
from millpond.server.calls.encoding import SLICE_LENGTH, array_slices, embedding_slices
from millpond.server.calls.engine_call import MANY_TEXTS, _on_a_thread

TEXTS = [f"text {n}" for n in range(2048)]


@pytest.mark.parametrize("as_base64", [False, True])
@pytest.mark.parametrize("shape", [(1, 3), (300, 1024), (2, SLICE_LENGTH + 1), (64, 1024)])
def test_slices_make_one_answer(shape: tuple[int, int], as_base64: bool) -> None:
    vectors = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    slices = list(embedding_slices(vectors, model='m"', tokens=7, as_base64=as_base64))
    assert len(slices) == -(-shape[0] // max(1, SLICE_LENGTH // shape[1]))
    body = json.loads(b"".join(slices))
    assert list(body) == ["object", "data", "model", "usage"]
    assert body["model"] == 'm"'
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [item["index"] for item in body["data"]] == list(range(shape[0]))
    if not as_base64:
        found = np.array([item["embedding"] for item in body["data"]], dtype=np.float32)
        np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize("count", [0, 1, SLICE_LENGTH, SLICE_LENGTH + 1])
def test_slices_make_one_array(count: int) -> None:
    assert json.loads(b"".join(array_slices(list(range(count))))) == list(range(count))


def test_no_answer_is_written_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SLICE_LENGTH", 16 * DIMENSION)
    written: list[int] = []
    original = orjson.dumps

    def dumps(value: Any, **options: Any) -> bytes:
        if isinstance(value, list):
            written.append(len(value))
        return original(value, **options)

    monkeypatch.setattr(encoding.orjson, "dumps", dumps)
    loops: list[int] = []

    async def call() -> Any:
        async with client_of(app) as client:
            asking = asyncio.ensure_future(client.post("/v1/embeddings", json={"input": TEXTS}))
            while not asking.done():
                loops.append(len(written))
                await asyncio.sleep(0)
            return asking.result()

    with fake_app() as app:
        answer = asyncio.run(call())
    assert max(written) == 16
    assert len(written) == 2048 // 16
    assert max(np.diff(loops)) <= 2  # slices between two turns of another task
    assert int(answer.headers["content-length"]) == len(answer.content)
    found = np.array([item["embedding"] for item in answer.json()["data"]], dtype=np.float32)
    np.testing.assert_array_equal(found, vectors_for(TEXTS))


@pytest.mark.parametrize(("count", "on_loop"), [(1, True), (MANY_TEXTS, True), (2048, False)])
def test_many_texts_are_submitted_on_another_thread(
    count: int, on_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    submit = Engine.submit

    def submit_noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return submit(*arguments, **options)

    monkeypatch.setattr(Engine, "submit", submit_noted)
    with fake_app() as app:
        assert embed(app, {"input": TEXTS[:count]}).status_code == 200
    assert [one is threading.main_thread() for one in threads] == [on_loop]


def test_a_request_that_ends_while_it_is_submitted_leaves_no_call_behind() -> None:
    may_submit, call = threading.Event(), Future[Any]()

    def submit() -> Future[Any]:
        may_submit.wait()
        return call

    async def end() -> None:
        submitting = asyncio.ensure_future(_on_a_thread(submit))
        await asyncio.sleep(0)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        assert not call.cancelled()
        may_submit.set()
        while not call.cancelled():
            await asyncio.sleep(0)

    asyncio.run(end())
