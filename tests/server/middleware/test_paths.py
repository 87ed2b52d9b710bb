"""However a path is written that means a route, the route answers; a path of another server's is
told where to go."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from serving import NAME, error_of, fake_app, request

from millpond.server.path_hints import meant_path
from millpond.server.settings import AppSettings


@pytest.fixture
def app() -> Iterator[FastAPI]:
    with fake_app() as app:
        yield app


@pytest.mark.parametrize(
    "path", ["/v1/embeddings/", "/v1/embeddings//", "//v1/embeddings", "/v1//embeddings/"]
)
def test_a_slash_too_many_is_answered_and_not_redirected(app: FastAPI, path: str) -> None:
    answer = request(app, "POST", f"http://evil.example{path}", json={"input": "a"})
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 1


@pytest.mark.parametrize("path", ["/v1/models/", "/health/", f"/v1/models/{NAME}/", "/docs/"])
def test_every_route_may_end_with_a_slash(app: FastAPI, path: str) -> None:
    assert request(app, "GET", path).text == request(app, "GET", path.rstrip("/")).text


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", f"/v1/models/{NAME}"])
def test_head_is_get_without_a_body(app: FastAPI, path: str) -> None:
    answer = request(app, "HEAD", path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert answer.headers["content-type"] == request(app, "GET", path).headers["content-type"]
    assert int(answer.headers["content-length"]) > 10
    assert request(app, "HEAD", "/v1/embeddings").status_code == 405
    metrics = request(app, "GET", "/metrics").text
    route = path.replace(NAME, "{model_id:path}")
    assert f'method="HEAD",route="{route}",status="200"' in metrics


def test_a_key_guards_a_path_however_it_is_written() -> None:
    with fake_app(settings=AppSettings(api_keys=("key",), root_path="/embed")) as app:
        for method in ("GET", "HEAD"):
            assert request(app, method, "/embed/health/").status_code == 200
            assert request(app, method, "http://pond//health").status_code == 200
            assert request(app, method, "/v1/models/").status_code == 401


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v2/embeddings", "/v1/embeddings"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/api/embed/", "/v1/embeddings"),
        ("/encode", "/v1/embeddings"),
        ("/openai/deployments/some/embeddings", "/v1/embeddings"),
        ("/V1/Embeddings", "/v1/embeddings"),
        ("/v2/models", "/v1/models"),
        ("/v1/tokenize", "/tokenize"),
        ("/healthz", "/health"),
        ("/metric", "/metrics"),
        ("/v1/chat/completions", None),
        ("/favicon.ico", None),
        ("/embed" * 100, None),
    ],
)
def test_a_path_of_another_servers_is_told_which_is_meant(
    app: FastAPI, path: str, meant: str | None
) -> None:
    assert meant_path(path) == meant
    answer = request(app, "POST", path)
    assert answer.status_code == 404
    hint = f"did you mean {meant}?" if meant else "/docs lists the routes"
    assert error_of(answer)["message"].endswith(hint)


def test_a_path_is_logged_as_it_was_sent(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "millpond.access"):
        request(app, "HEAD", "http://pond//health/")
        request(app, "GET", "/" + "a" * 10_000)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "HEAD //health/ 200"
    assert len(second) < 600
