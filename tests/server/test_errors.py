"""Every error answer has OpenAI's shape, whoever found the error."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from fakes import FakeRunner, held_engine, token_ids
from fastapi import FastAPI
from serving import Call, client_of, embed, error_of, fake_app, request

from millpond.server.app import create_app
from millpond.server.drain import DrainState
from millpond.server.models import ServedModel
from millpond.server.settings import AppSettings


@pytest.fixture
def app() -> Any:
    with fake_app() as app:
        yield app


def test_an_unknown_path_is_a_404(app: FastAPI) -> None:
    answer = request(app, "GET", "/v1/completions")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "not_found"
    assert "/v1/completions" in error_of(answer)["message"]


def test_another_method_is_a_405_that_says_which_are_allowed(app: FastAPI) -> None:
    answer = request(app, "GET", "/v1/embeddings")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert error_of(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{", {"content-type": "application/json"}),
        (b"", {"content-type": "application/json"}),
        (b"[1]", {"content-type": "application/json"}),
        (b"[" * 100_000, {"content-type": "application/json"}),
        (b'{"input": "a"}', {"content-type": "text/plain"}),
        (b"input=a", {"content-type": "application/x-www-form-urlencoded"}),
    ],
)
def test_what_is_not_json_is_a_400(app: FastAPI, content: bytes, headers: dict[str, str]) -> None:
    answer = request(app, "POST", "/v1/embeddings", content=content, headers=headers)
    assert answer.status_code == 400
    error_of(answer)


def test_json_without_a_content_type_is_understood(app: FastAPI) -> None:
    answer = request(app, "POST", "/v1/embeddings", content=b'{"input": "a"}')
    assert answer.status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_a_413(declared: bool) -> None:
    async def parts() -> Any:
        for _ in range(10):
            yield b" " * 100

    with fake_app(settings=AppSettings(max_body_bytes=200)) as app:
        assert embed(app, {"input": "a"}).status_code == 200
        content = b" " * 1000 if declared else parts()
        answer = request(app, "POST", "/v1/embeddings", content=content)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "request_too_large"


def test_a_full_queue_is_a_429_that_says_when_to_come_again() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner, max_queue_tokens=8) as engine:
        app = create_app([ServedModel.of(engine)])
        engine.submit([[1] * 4])
        runner.wait_for_batches(1)
        engine.submit([[2] * 4, [3] * 4])
        answer = embed(app, {"input": [[1] * 4, [2] * 4]})
        assert answer.status_code == 429
        assert error_of(answer)["code"] == "queue_full"
        assert error_of(answer)["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        message = error_of(answer)["message"]
        assert "8 of bulk requests are waiting" in message
        assert "--max-queue-tokens" in message
        assert "max_queue_tokens" not in message
        metrics = request(app, "GET", "/metrics").text
        assert 'millpond_rejected_requests_total{model="fake/model"} 1.0' in metrics


def test_what_takes_too_long_is_a_504_and_is_taken_out_of_the_queue() -> None:
    runner = FakeRunner(max_batch_tokens=1)
    with held_engine(runner) as engine:
        engine.submit("first")
        runner.wait_for_batches(1)
        app = create_app([ServedModel.of(engine)], AppSettings(request_timeout_s=0.05))
        answer = embed(app, {"input": "late"})
        assert answer.status_code == 504
        assert error_of(answer)["type"] == "timeout_error"
        runner.let()
        engine.embed("last")
        assert runner.ran == ["first", "last"]


def test_an_engine_that_failed_is_a_503_and_health_says_so() -> None:
    with fake_app(FakeRunner(fatal_on=["poison"])) as app:
        assert request(app, "GET", "/health").json()["status"] == "ready"
        assert embed(app, {"input": "poison"}).status_code == 503
        answer = embed(app, {"input": "a"})
        assert answer.status_code == 503
        assert error_of(answer)["type"] == "service_unavailable_error"
        health = request(app, "GET", "/health")
        assert health.status_code == 503
        assert "failed" in error_of(health)["message"]
        assert (
            'millpond_engine_ready{model="fake/model"} 0.0' in request(app, "GET", "/metrics").text
        )


def test_a_draining_server_takes_no_more_and_health_says_so() -> None:
    with held_engine(FakeRunner()) as engine:
        drain = DrainState()
        app = create_app([ServedModel.of(engine)], drain=drain)
        drain.draining = True
        for answer in (embed(app, {"input": "a"}), request(app, "GET", "/health")):
            assert answer.status_code == 503
            assert error_of(answer)["code"] == "draining"
            assert answer.headers["connection"] == "close"


def test_our_own_mistake_is_a_500_whose_details_are_in_the_log_alone(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/broken")
    async def broken() -> None:
        raise LookupError("a secret of the house")

    answer = request(app, "GET", "/broken", headers={"x-request-id": "r-7"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "r-7"
    assert error_of(answer)["type"] == "server_error"
    assert "secret" not in answer.text
    assert "request r-7 failed" in caplog.text
    assert "a secret of the house" in caplog.text


# A client that hangs up.


def test_a_client_that_hangs_up_has_its_texts_taken_out(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner(max_batch_tokens=1)
    with held_engine(runner) as engine:
        app = create_app([ServedModel.of(engine)])
        engine.submit("first")
        runner.wait_for_batches(1)
        with caplog.at_level(logging.INFO, "millpond.access"):
            asyncio.run(hang_up(app, b'{"input": ["gone", "too"]}'))
        runner.let()
        engine.embed("last")
        assert runner.ran == ["first", "last"]
        assert engine.stats().cancelled_texts == 2
    assert caplog.records[-1].getMessage() == "POST /v1/embeddings 499"


async def hang_up(app: FastAPI, body: bytes) -> None:
    """Send a request, and be gone before its answer."""
    call = Call(app)
    call.send(body, last=True)
    call.hang_up()
    await call.over


def test_a_cancelled_call_is_taken_out_too() -> None:
    runner = FakeRunner(max_batch_tokens=1)

    async def cancel(app: FastAPI) -> None:
        async with client_of(app) as client:
            asking = asyncio.ensure_future(client.post("/v1/embeddings", json={"input": "gone"}))
            while engine.stats().waiting_interactive_tokens == 0:
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    with held_engine(runner) as engine:
        app = create_app([ServedModel.of(engine)])
        engine.submit("first")
        runner.wait_for_batches(1)
        asyncio.run(cancel(app))
        runner.let()
        engine.embed("last")
        assert runner.ran == ["first", "last"]


def test_a_list_that_breaks_nothing_is_no_error(app: FastAPI) -> None:
    answer: httpx.Response = embed(app, {"input": ["", " ", "\x00"]})
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 3
    assert token_ids("").tolist() == [0]
