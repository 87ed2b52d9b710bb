"""What Prometheus reads: requests, batches, texts, and what waits."""

from __future__ import annotations

import asyncio

from fakes import FakeRunner, held_engine
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from serving import NAME, client_of, embed, fake_app, request

from millpond.server.app import create_app
from millpond.server.models import ServedModel


def samples(app: FastAPI) -> dict[tuple[str, ...], float]:
    answer = request(app, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return parsed(answer.text)


def parsed(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_requests_batches_and_texts() -> None:
    with fake_app(FakeRunner(max_length=2)) as app:
        embed(app, {"input": ["a", "b c d"]})
        embed(app, {"input": 7})
        request(app, "GET", "/nowhere/at/all")
        found = samples(app)
    route = "/v1/embeddings"
    assert found["millpond_http_requests_total", route, "200", "POST"] == 1
    assert found["millpond_http_requests_total", route, "400", "POST"] == 1
    assert found["millpond_http_requests_total", "404", "GET", "unmatched"] == 1
    assert found["millpond_http_request_seconds_count", route] == 2
    assert found["millpond_http_requests_in_progress",] == 1  # this very scrape
    assert found["millpond_batch_texts_sum", NAME] == 2
    assert found["millpond_batch_tokens_sum", NAME] == 3
    assert found["millpond_batch_padded_tokens_sum", NAME] == 0
    assert found["millpond_batch_forward_seconds_count", NAME] >= 1
    assert found["millpond_batch_tokenize_seconds_sum", NAME] >= 0.001
    assert found["millpond_texts_total", NAME] == 2
    assert found["millpond_truncated_texts_total", NAME] == 1
    assert found["millpond_cancelled_texts_total", NAME] == 0
    assert found["millpond_rejected_requests_total", NAME] == 0
    assert found["millpond_engine_ready", NAME] == 1
    for priority in ("interactive", "bulk"):
        assert found["millpond_queue_tokens", *sorted((NAME, priority))] == 0
        assert found["millpond_engine_requests_in_progress", *sorted((NAME, priority))] == 0


def test_metrics_tell_what_waits() -> None:
    runner = FakeRunner(max_batch_tokens=1)

    async def look(app: FastAPI) -> tuple[dict[tuple[str, ...], float], int]:
        async with client_of(app) as client:
            asking = asyncio.ensure_future(
                client.post("/v1/embeddings", json={"input": ["a b", "c"]})
            )
            while engine.stats().waiting_bulk_tokens < 3:
                await asyncio.sleep(0)
            found = parsed((await client.get("/metrics")).text)
            runner.let()
            return found, (await asking).status_code

    with held_engine(runner) as engine:
        app = create_app([ServedModel.of(engine)])
        engine.submit("first")
        runner.wait_for_batches(1)
        found, status = asyncio.run(look(app))
    assert status == 200
    assert found["millpond_queue_tokens", "bulk", NAME] >= 3
    assert found["millpond_engine_requests_in_progress", "bulk", NAME] == 1
    assert found["millpond_engine_requests_in_progress", NAME, "interactive"] == 0


def test_two_applications_count_apart() -> None:
    with fake_app() as one, fake_app() as other:
        embed(one, {"input": "a"})
        assert samples(one)["millpond_texts_total", NAME] == 1
        assert samples(other)["millpond_texts_total", NAME] == 0
