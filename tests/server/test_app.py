"""The application around the routes: keys, ids, origins, log, and the small routes."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest
from fakes import DIMENSION, FakeRunner, start_engine, token_ids
from fastapi import FastAPI
from serving import NAME, embed, error_of, fake_app, request

import millpond
from millpond import InvalidOption
from millpond.server.app import create_app
from millpond.server.middleware.api_key import APIKeyMiddleware
from millpond.server.models import ServedModel, ServedModels
from millpond.server.process.log_format import JsonFormatter, TextFormatter
from millpond.server.settings import AppSettings, ListenSettings


@pytest.fixture
def app() -> Any:
    with fake_app() as app:
        yield app


# The API key.

GUARDED = ("/v1/models", "/version", "/openapi.json", "/nowhere", "/static/other")


@pytest.mark.parametrize("path", GUARDED)
def test_a_key_guards_every_route_but_health_and_metrics(path: str) -> None:
    with fake_app(settings=AppSettings(api_keys=("first", "second"))) as app:
        for headers in ({}, *({"authorization": text} for text in ("Bearer no", "Basic first"))):
            answer = request(app, "GET", path, headers=headers)
            assert answer.status_code == 401
            assert error_of(answer)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in ("first", "second"):
            answer = request(app, "GET", path, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == (404 if path in ("/nowhere", "/static/other") else 200)
        assert request(app, "GET", "/health").status_code == 200
        assert request(app, "GET", "/metrics").status_code == 200


def test_without_a_key_nothing_is_embedded() -> None:
    runner = FakeRunner()
    with fake_app(runner, AppSettings(api_keys=("key",))) as app:
        assert embed(app, {"input": "a"}).status_code == 401
        assert runner.ran == []
        assert embed(app, {"input": "a"}, headers={"authorization": "bearer key"}).is_success


def test_metrics_may_be_guarded_too() -> None:
    with fake_app(settings=AppSettings(api_keys=("key",), protect_metrics=True)) as app:
        assert request(app, "GET", "/metrics").status_code == 401
        assert request(app, "GET", "/health").status_code == 200


def test_a_key_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    settings = AppSettings(api_keys=("open-sesame",))
    with fake_app(settings=settings) as app, caplog.at_level(logging.DEBUG):
        for sent in ("open-sesame", "open-barley"):
            request(app, "GET", "/version", headers={"authorization": f"Bearer {sent}"})
    assert "open-" not in caplog.text
    assert "open-" not in repr(settings)
    assert "open-" not in repr(APIKeyMiddleware(app, keys=settings.api_keys, open_paths=()))


# Ids, timings, log lines.


def test_a_requests_id_is_given_back_or_made() -> None:
    with fake_app() as app:
        answer = request(app, "GET", "/version", headers={"x-request-id": "mine-7"})
        assert answer.headers["x-request-id"] == "mine-7"
        made = {request(app, "GET", "/version").headers["x-request-id"] for _ in range(3)}
        assert len(made) == 3
        for unusable in ("two words", "x" * 129, "naïve"):
            headers = {"x-request-id": unusable.encode()}
            answer = request(app, "GET", "/version", headers=headers)
            assert answer.headers["x-request-id"] != unusable


def test_headers_tell_the_timings(app: FastAPI) -> None:
    headers = embed(app, {"input": "a"}).headers
    for part in ("queue", "tokenize", "forward"):
        assert float(headers[f"x-millpond-{part}-ms"]) >= 0
    assert headers["x-millpond-truncated-texts"] == "0"


def log_record(app: FastAPI, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    with caplog.at_level(logging.INFO, "millpond.access"):
        embed(app, {"input": ["a b", "c"]}, headers={"x-request-id": "id-1"})
    (record,) = (one for one in caplog.records if one.name == "millpond.access")
    return record


def test_a_request_is_one_log_line(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    line = TextFormatter().format(log_record(app, caplog))
    assert "INFO millpond.access: POST /v1/embeddings 200 request_id=id-1 " in line
    assert f" model={NAME} texts=2 tokens=3 queue_ms=" in line
    assert "\n" not in line


def test_a_log_line_may_be_json(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    line = json.loads(JsonFormatter().format(log_record(app, caplog)))
    assert line["message"] == "POST /v1/embeddings 200"
    assert (line["status"], line["texts"], line["tokens"]) == (200, 2, 3)
    assert line["request_id"] == "id-1"
    assert line["ms"] >= 0


FORGED = "x%0A2026-11-24T23:59:59.000+00:00 INFO millpond.access: GET /%20200%1B%5B31m%E2%80%A8"


def test_a_path_forges_no_log_line(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "millpond.access"):
        request(app, "GET", f"/{FORGED.replace(' ', '%20')}")
        request(app, "GET", f"/v1/models/{FORGED.replace(' ', '%20')}")
    for record in caplog.records:
        line = TextFormatter().format(record)
        assert line.isprintable()
        assert line.count(" 404 request_id=") == 1
        assert " 200" not in line
        assert json.loads(JsonFormatter().format(record))["status"] == 404


def test_no_log_line_forges_another() -> None:
    record = logging.LogRecord("millpond", logging.INFO, "", 0, "%s", ("a\nb\x1b\u2028",), None)
    record.fields = {"model": "m\nn"}
    assert TextFormatter().format(record).endswith(r"a\nb\x1b\u2028 model=m\nn")


# The small routes.


def test_models_are_listed_and_found_by_name() -> None:
    with start_engine(FakeRunner(max_length=9)) as engine:
        app = create_app([ServedModel.of(engine, ["org/name", "alias"])])
        listed = request(app, "GET", "/v1/models").json()
        assert listed["object"] == "list"
        assert [card["id"] for card in listed["data"]] == ["org/name", "alias"]
        for path in ("org/name", "org%2Fname"):
            card = request(app, "GET", f"/v1/models/{path}").json()
            assert card.pop("created") > 1_600_000_000
            assert card == {
                "id": "org/name",
                "object": "model",
                "owned_by": "millpond",
                "root": "fake/model",
                "kind": "embed",
                "labels": [],
                "dimension": DIMENSION,
                "max_model_len": 9,
                "device": "fake",
                "dtype": "float32",
                "execution": "packed",
            }
        missing = request(app, "GET", "/v1/models/nobody")
        assert missing.status_code == 404
        assert error_of(missing)["code"] == "model_not_found"


def test_a_text_is_tokenised_in_vllms_shape() -> None:
    with fake_app(FakeRunner(special_ends=([101], [102]), max_length=2)) as app:
        a, b = (int(token_ids(word)[0]) for word in "ab")
        answer = request(app, "POST", "/tokenize", json={"model": NAME, "prompt": "a b"})
        assert answer.json() == {
            "count": 4,
            "max_model_len": 2,
            "tokens": [101, a, b, 102],
            "token_strs": None,
        }
        bare = {"prompt": "a b", "add_special_tokens": False, "return_token_strs": True}
        answer = request(app, "POST", "/tokenize", json=bare).json()
        assert (answer["tokens"], answer["token_strs"]) == ([a, b], ["a", "b"])
        asked = request(app, "POST", "/tokenize", json={"prompt": "a", "input_type": "query"})
        assert asked.json()["count"] == 4


def test_token_ids_become_text(app: FastAPI) -> None:
    ids = request(app, "POST", "/tokenize", json={"prompt": "a b"}).json()["tokens"]
    answer = request(app, "POST", "/detokenize", json={"tokens": ids})
    assert answer.json() == {"prompt": "a b"}
    unknown = request(app, "POST", "/detokenize", json={"tokens": [1]})
    assert unknown.status_code == 400
    error = error_of(unknown)
    assert (error["code"], error["param"]) == ("invalid_token_ids", "tokens")
    assert error["message"].startswith("tokens: ")
    assert "check_embedding_ctx_length" not in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "poison"}, "prompt"),
        ({"prompt": "a", "prompt_name": "dance"}, "prompt_name"),
        ({"prompt": ["a"]}, "prompt"),
    ],
)
def test_a_text_that_cannot_be_tokenised_is_a_400_that_names_the_field(
    body: dict[str, Any], param: str
) -> None:
    with fake_app(FakeRunner(refuses=["poison"])) as app:
        answer = request(app, "POST", "/tokenize", json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert "text 0" not in error_of(answer)["message"]


def test_the_version_is_millponds(app: FastAPI) -> None:
    assert request(app, "GET", "/version").json() == {"version": millpond.__version__}


def test_the_documentation_is_served(app: FastAPI) -> None:
    assert "<title>Millpond: API</title>" in request(app, "GET", "/docs").text
    document = request(app, "GET", "/openapi.json").json()
    fields = document["components"]["schemas"]["EmbeddingRequest"]["properties"]
    assert all(field.get("description") for field in fields.values())
    assert document["info"]["version"] == millpond.__version__


def test_the_document_says_where_a_key_is_needed(app: FastAPI) -> None:
    assert "security" not in request(app, "GET", "/openapi.json").text
    settings = AppSettings(api_keys=("key",))
    with fake_app(settings=settings) as guarded:
        for _ in range(2):
            answer = request(
                guarded, "GET", "/openapi.json", headers={"authorization": "Bearer key"}
            )
            document = answer.json()
            (scheme,) = document["components"]["securitySchemes"].items()
            assert scheme == ("HTTPBearer", {"type": "http", "scheme": "bearer"})
            assert document["security"] == [{"HTTPBearer": []}]
            free = [
                path
                for path, operations in document["paths"].items()
                if all(operation.get("security") == [] for operation in operations.values())
            ]
            assert free == ["/health", "/metrics"]


# Origins and prefixes.


def test_pages_of_an_allowed_origin_may_call() -> None:
    settings = AppSettings(cors_origins=("https://a.example",), api_keys=("key",))
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    with fake_app(settings=settings) as app:
        headers = {"origin": "https://a.example", **preflight}
        answer = request(app, "OPTIONS", "/v1/embeddings", headers=headers)
        assert answer.is_success
        headers = {"origin": "https://b.example", "x-request-id": "r-1", **preflight}
        answer = request(app, "OPTIONS", "/v1/embeddings", headers=headers)
        assert answer.status_code == 400
        assert answer.headers["x-request-id"] == "r-1"
        assert "access-control-allow-origin" not in answer.headers
        answer = embed(app, {"input": "a"}, headers={"origin": "https://a.example"})
        assert answer.status_code == 401  # and the page may read why
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("prefix", ["", "/embed"])
def test_a_proxy_may_strip_the_prefix_or_leave_it(prefix: str) -> None:
    settings = AppSettings(root_path="/embed", api_keys=("key",))
    with fake_app(settings=settings) as app:
        assert request(app, "GET", f"{prefix}/health").status_code == 200
        assert request(app, "GET", f"{prefix}/version").status_code == 401
        headers = {"authorization": "Bearer key"}
        assert request(app, "GET", f"{prefix}/version", headers=headers).status_code == 200


# What the operator asks for.


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (AppSettings, {"api_keys": ("",)}),
        (AppSettings, {"api_keys": ("clé",)}),
        (AppSettings, {"api_keys": ("two words",)}),
        (AppSettings, {"api_keys": ("line\nline",)}),
        (AppSettings, {"max_body_bytes": 0}),
        *((AppSettings, {"request_timeout_s": value}) for value in (0, -1, math.inf, math.nan)),
        (AppSettings, {"root_path": "embed"}),
        (AppSettings, {"root_path": "/embed/"}),
        (ListenSettings, {"port": 70_000}),
        *((ListenSettings, {"drain_timeout_s": value}) for value in (-1, math.inf, math.nan)),
        (ListenSettings, {"ssl_keyfile": "key.pem"}),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        settings(**options)


def test_a_name_is_served_once() -> None:
    with start_engine(FakeRunner()) as engine:
        model = ServedModel.of(engine, ["one"])
        with pytest.raises(InvalidOption, match="'one'"):
            create_app([model, ServedModel.of(engine, ["two", "one"])])
        assert repr(ServedModels([model])) == "ServedModels(models=1, names=['one'])"
