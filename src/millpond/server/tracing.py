"""`Tracing`: OpenTelemetry spans of requests and of their calls of an engine.

OpenTelemetry is an extra, and imported only where traces are asked for, with its own variables:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
Attributes have the names of its conventions for HTTP servers and for generative AI.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOption
from ..outputs import Timings
from .request_context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Tracing"]

logger = logging.getLogger("millpond.server")

NOT_TRACED = ("/health", "/metrics")  # asked every few seconds, by machines
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
# What a route adds to the log line -> an attribute, and the factor to its unit.
_OF_LOG_LINE = {
    "model": ("gen_ai.request.model", None),
    "tokens": ("gen_ai.usage.input_tokens", None),
    "texts": ("millpond.texts", None),
    "queue_ms": ("millpond.queue_s", 1e-3),
    "tokenize_ms": ("millpond.tokenize_s", 1e-3),
    "forward_ms": ("millpond.forward_s", 1e-3),
}


class Tracing:
    """One application's spans, which it hands to a provider."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer("millpond", installed_version("millpond"))
        self._trace = trace
        self._extract = propagate.extract

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Tracing | None:
        """As OpenTelemetry's variables say; None where they name no exporter of traces.

        Raises `InvalidOption` for an exporter or a protocol that is not there.
        """
        names = _exporter_names(environment)
        if not names:
            return None
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            logger.warning(
                "the environment asks for traces, and OpenTelemetry is not installed: "
                'pip install "millpond[otel]"'
            )
            return None
        own = {} if _names_service(environment) else {"service.name": "millpond"}
        provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        for name in names:
            provider.add_span_processor(BatchSpanProcessor(_exporter(name, environment)))
        return cls(provider)

    def close(self) -> None:
        """Send what is left, and end the threads that send."""
        self._provider.shutdown()

    @contextmanager
    def request(self, context: RequestContext) -> Iterator[None]:
        """The span of a request, a child of the one that its headers name; none for some paths."""
        if context.path.removeprefix(context.scope.get("root_path", "")) in NOT_TRACED:
            yield
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in context.scope["headers"]
        }
        with self._tracer.start_as_current_span(
            context.scope["method"],
            context=self._extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=_attributes_at_start(context, headers),
        ) as span:
            context.log_fields["trace_id"] = f"{span.get_span_context().trace_id:032x}"
            try:
                yield
            finally:
                self._end(span, context)

    def _end(self, span: Any, context: RequestContext) -> None:
        if context.route != "unmatched":
            span.update_name(f"{context.scope['method']} {context.route}")
            span.set_attribute("http.route", context.route)
        if context.status is not None:
            span.set_attribute("http.response.status_code", context.status)
            if context.status >= 500:
                span.set_attribute("error.type", str(context.status))
                span.set_status(self._trace.StatusCode.ERROR)
        for field, (name, factor) in _OF_LOG_LINE.items():
            if field in context.log_fields:
                value = context.log_fields[field]
                span.set_attribute(name, value if factor is None else value * factor)

    def engine_call(self, submitted_ns: int, timings: Timings) -> None:
        """Spans of a call that is done: in the queue, and from its first forward pass on.

        Its texts are tokenised while it waits, and its forward passes may overlap.
        """
        began_ns = submitted_ns + round(timings.queue_s * 1e9)
        ended_ns = max(began_ns, submitted_ns + round(timings.total_s * 1e9))
        queue, run = "millpond.queue", "millpond.run"
        self._span(queue, submitted_ns, began_ns, {"millpond.tokenize_s": timings.tokenize_s})
        self._span(run, began_ns, ended_ns, {"millpond.forward_s": timings.forward_s})

    def _span(self, name: str, began_ns: int, ended_ns: int, attributes: dict[str, float]) -> None:
        span = self._tracer.start_span(name, start_time=began_ns, attributes=attributes)
        span.end(ended_ns)

    def __repr__(self) -> str:
        return f"Tracing(provider={type(self._provider).__name__})"


def _exporter_names(environment: Mapping[str, str]) -> list[str]:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    given = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if not given:
        return ["otlp"] if any(environment.get(name) for name in _ENDPOINTS) else []
    return [name for part in given.split(",") if (name := part.strip()) not in ("", "none")]


def _exporter(name: str, environment: Mapping[str, str]) -> Any:
    """Made by its entry point, and configured by its own variables."""
    variable, known = "OTEL_TRACES_EXPORTER", name
    if name == "otlp":
        variable = next((one for one in _PROTOCOLS if environment.get(one)), _PROTOCOLS[1])
        protocol = environment.get(variable) or "http/protobuf"
        if protocol not in _EXPORTERS:
            raise InvalidOption(f"{variable}={protocol!r}: choose {' or '.join(_EXPORTERS)}")
        known = _EXPORTERS[protocol]
    found = [*entry_points(group="opentelemetry_traces_exporter", name=known)]
    if not found:
        raise InvalidOption(
            f"{variable}: no exporter {known!r} is installed; pip install "
            f"opentelemetry-exporter-{known.replace('_', '-')}"
        )
    return found[0].load()()


def _names_service(environment: Mapping[str, str]) -> bool:
    attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return bool(environment.get("OTEL_SERVICE_NAME")) or "service.name=" in attributes


def _attributes_at_start(context: RequestContext, headers: Mapping[str, str]) -> dict[str, Any]:
    """Those that a sampler may ask for."""
    scope = context.scope
    client, server = scope.get("client"), scope.get("server")
    found = {
        "http.request.method": scope["method"],
        "url.path": context.path,
        "url.scheme": scope.get("scheme"),
        "network.protocol.version": scope.get("http_version"),
        "client.address": client[0] if client else None,
        "server.address": server[0] if server else None,
        "server.port": server[1] if server else None,
        "user_agent.original": headers.get("user-agent"),
        "millpond.request_id": context.request_id,
    }
    return {name: value for name, value in found.items() if value is not None}
