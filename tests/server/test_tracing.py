"""Spans of requests, by OpenTelemetry's own exporter in memory, and nothing of it unasked."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from fakes import FakeRunner, start_engine
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from server_process import server_process
from serving import NAME, request

from millpond.errors import InvalidOption
from millpond.server.app import create_app
from millpond.server.models import ServedModel
from millpond.server.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    """An application whose spans stay in memory."""

    def __init__(self, runner: FakeRunner) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)
        self.engine = start_engine(runner)
        self.app = create_app([ServedModel.of(self.engine)], tracing=self.tracing)

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced(FakeRunner(fatal_on=["fatal"]))
    with traced.engine, closing(traced.tracing):
        yield traced


def test_a_request_is_a_span_with_its_queue_and_its_run(traced: Traced) -> None:
    answer = request(traced.app, "POST", "/v1/embeddings", json={"input": ["a b", "c"]})
    assert answer.status_code == 200
    spans = traced.spans()
    assert set(spans) == {"POST /v1/embeddings", "millpond.queue", "millpond.run"}
    span = spans["POST /v1/embeddings"]
    assert span.kind is SpanKind.SERVER
    attributes = dict(span.attributes or {})
    assert attributes["http.request.method"] == "POST"
    assert attributes["http.route"] == attributes["url.path"] == "/v1/embeddings"
    assert attributes["http.response.status_code"] == 200
    assert attributes["gen_ai.request.model"] == NAME
    assert (attributes["gen_ai.usage.input_tokens"], attributes["millpond.texts"]) == (3, 2)
    assert attributes["millpond.request_id"] == answer.headers["x-request-id"]
    shown_ms = float(answer.headers["x-millpond-queue-ms"])
    assert attributes["millpond.queue_s"] == pytest.approx(shown_ms / 1000)
    queue, run = spans["millpond.queue"], spans["millpond.run"]
    for child in (queue, run):
        assert child.parent is not None
        assert child.parent.span_id == span.context.span_id
    assert queue.end_time == run.start_time
    assert queue.attributes is not None
    assert run.attributes is not None
    assert queue.attributes["millpond.tokenize_s"] >= 0  # type: ignore[operator]
    assert run.attributes["millpond.forward_s"] >= 0  # type: ignore[operator]


def test_the_callers_trace_goes_on_and_is_in_the_log(
    traced: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    with caplog.at_level(logging.INFO, "millpond.access"):
        request(traced.app, "POST", "/embed", json={"inputs": "a"}, headers=headers)
    for span in traced.spans().values():
        assert f"{span.context.trace_id:032x}" == TRACE
    span = traced.spans()["POST /embed"]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert caplog.records[-1].fields["trace_id"] == TRACE  # type: ignore[attr-defined]


def test_a_trace_that_is_not_sampled_is_not_exported(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert request(traced.app, "GET", "/v1/models", headers=headers).status_code == 200
    assert traced.spans() == {}


def test_an_error_of_the_server_is_one_of_the_span(traced: Traced) -> None:
    assert request(traced.app, "POST", "/embed", json={}).status_code == 400
    assert request(traced.app, "POST", "/v1/embeddings", json={"input": "fatal"}).is_server_error
    spans = traced.spans()
    assert spans["POST /embed"].status.status_code is StatusCode.UNSET
    failed = spans["POST /v1/embeddings"]
    assert failed.status.status_code is StatusCode.ERROR
    assert dict(failed.attributes or {})["error.type"] == "503"


def test_probes_and_scrapes_are_not_traced_and_unknown_paths_name_nothing(traced: Traced) -> None:
    for path in ("/health", "/metrics", "/no-such-path"):
        request(traced.app, "GET", path)
    assert set(traced.spans()) == {"GET"}


# What the environment asks for.


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SERVICE_NAME": "pond"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://pond:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://pond:4318"},
    ],
)
def test_without_an_exporter_there_are_no_traces(environment: dict[str, str]) -> None:
    assert Tracing.of_environment(environment) is None


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "opentelemetry-exporter-zipkin"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ),
    ],
)
def test_an_exporter_that_is_not_there_is_named(environment: dict[str, str], part: str) -> None:
    with pytest.raises(InvalidOption, match=part):
        Tracing.of_environment(environment)


def test_a_missing_extra_is_told_and_the_server_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING):
        assert Tracing.of_environment({"OTEL_TRACES_EXPORTER": "console"}) is None
    assert "millpond[otel]" in caplog.text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # FastAPI imports the API itself.
        ("", "assert not {'opentelemetry.sdk', 'opentelemetry.exporter'} & set(sys.modules)"),
        ("sys.modules['opentelemetry.sdk'] = None", ""),
    ],
    ids=["unasked", "not installed"],
)
def test_nothing_of_it_is_imported(before: str, after: str) -> None:
    program = [
        *("import sys", before, "from millpond.server.process.run import run"),
        *("from millpond.server.tracing import Tracing",),
        *("assert Tracing.of_environment({}) is None", after),
    ]
    subprocess.run([sys.executable, "-c", "\n".join(program)], check=True)


@pytest.mark.slow
def test_a_servers_spans_reach_the_collector_that_the_environment_names() -> None:
    received = ExportTraceServiceRequest()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.MergeFromString(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=collector.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{collector.server_port}"
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        }
        model = "sentence-transformers/all-MiniLM-L6-v2"
        with server_process("--model", model, **environment) as server:
            answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"})
            assert answer.status_code == 200
            server.signal()
            assert server.wait() == 0
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    (resource,) = received.resource_spans
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert {"POST /v1/embeddings", "millpond.queue", "millpond.run"} <= names
    service = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert service["service.name"] == "millpond"
