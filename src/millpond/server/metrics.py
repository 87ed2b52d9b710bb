"""`Metrics`: what Prometheus reads, in a registry of this application's own.

Batches are counted as the engines tell of them, through their stats hooks; what waits is read from
the engines when Prometheus asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ..engine.engine import Engine
from ..stats import BatchStats, EngineStats, PrefixCacheStats
from .middleware.request_context import RequestContext
from .models import ServedModel, ServedModels

__all__ = ["Metrics"]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PRIORITIES = ("interactive", "bulk")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Metrics:
    """One per application. prometheus-client's own locks guard it."""

    def __init__(self, models: ServedModels) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "millpond_http_requests",
            "Requests answered; status 499 where the client hung up.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "millpond_http_request_seconds",
            "From the request's first byte to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        # Finding a label's own counter takes longer than counting.
        self._of_kind: dict[tuple[str, str, int | None], tuple[Counter, Histogram]] = {}
        self._gauges: dict[tuple[str, str], Gauge] = {}
        self.in_progress = Gauge(
            "millpond_http_requests_in_progress",
            "Requests being answered now.",
            registry=self.registry,
        )
        self._at_priority = Gauge(
            "millpond_priority_requests",
            "Requests handed to an engine and not finished.",
            ["model", "priority"],
            registry=self.registry,
        )
        self._rejected = Counter(
            "millpond_rejected_requests",
            "Requests refused with 429 because the queue was full.",
            ["model"],
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_EngineCollector(models))
        self._watch(models)

    def _watch(self, models: Sequence[ServedModel] | ServedModels) -> None:
        meters = _BatchMeters(self.registry)
        self._hooks: list[tuple[Engine, Callable[[BatchStats], None]]] = [
            (model.engine, meters.of(model.name)) for model in models
        ]
        for model in models:
            self._rejected.labels(model.name)  # so that it is there before the first
            for priority in PRIORITIES:
                self._gauges[model.name, priority] = self._at_priority.labels(model.name, priority)
        for engine, hook in self._hooks:
            engine.add_stats_hook(hook)

    def close(self) -> None:
        """Stop listening to the engines."""
        for engine, hook in self._hooks:
            engine.remove_stats_hook(hook)

    def answered(self, exchange: RequestContext) -> None:
        """Count an exchange that is over."""
        method = exchange.scope["method"]
        key = (exchange.route, method if method in METHODS else "other", exchange.status)
        if key not in self._of_kind:
            route, method, status = key
            self._of_kind[key] = (
                self._requests.labels(route, method, str(status)),
                self._seconds.labels(route),
            )
        requests, seconds = self._of_kind[key]
        requests.inc()
        seconds.observe(exchange.seconds)

    def at_priority(self, model: ServedModel, priority: str) -> AbstractContextManager[None]:
        """Count a request at its priority for as long as this is entered."""
        return self._gauges[model.name, priority].track_inprogress()

    def rejected(self, model: ServedModel) -> None:
        """Count a request for which the queue had no room."""
        self._rejected.labels(model.name).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def __repr__(self) -> str:
        return f"Metrics(engines={len(self._hooks)})"


class _BatchMeters:
    """Histograms over forward passes, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(
                f"millpond_{name}", text, ["model"], buckets=buckets, registry=registry
            )

        self._texts = histogram("batch_texts", "Texts of a forward pass.", COUNTS)
        self._tokens = histogram("batch_tokens", "Tokens of a forward pass.", TOKENS)
        self._padding = histogram(
            "batch_padded_tokens", "Tokens computed beside them and thrown away.", (0, *TOKENS)
        )
        self._queue = histogram(
            "batch_queue_seconds", "Longest wait of a ready text for the pass.", SECONDS
        )
        self._tokenize = histogram(
            "batch_tokenize_seconds", "Tokenising the texts of the pass.", SECONDS
        )
        self._forward = histogram(
            "batch_forward_seconds", "From the launch to the vectors on the host.", SECONDS
        )

    def of(self, model: str) -> Callable[[BatchStats], None]:
        """A stats hook for a model's engine."""
        texts, tokens = self._texts.labels(model), self._tokens.labels(model)
        padding, queue = self._padding.labels(model), self._queue.labels(model)
        tokenize, forward = self._tokenize.labels(model), self._forward.labels(model)

        def hook(batch: BatchStats) -> None:
            texts.observe(batch.texts)
            tokens.observe(batch.tokens)
            padding.observe(batch.padded_tokens)
            queue.observe(batch.queue_s)
            tokenize.observe(batch.tokenize_s)
            forward.observe(batch.forward_s)

        return hook


# Name, help, and where the number stands.
_TOTALS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("texts", "Texts that got a vector.", lambda stats: stats.texts),
    ("tokens", "Tokens of texts that were run.", lambda stats: stats.tokens),
    (
        "deduplicated_texts",
        "Texts that got the vector of an identical one in flight.",
        lambda stats: stats.deduplicated_texts,
    ),
    (
        "cached_tokens",
        "Tokens that came out of the prefix cache instead of being computed.",
        lambda stats: stats.cached_tokens,
    ),
    ("padded_tokens", "Tokens computed beside them.", lambda stats: stats.padded_tokens),
    ("truncated_texts", "Texts that were cut.", lambda stats: stats.truncated_texts),
    ("failed_texts", "Texts the model failed on.", lambda stats: stats.failed_texts),
    ("cancelled_texts", "Texts taken out before they ran.", lambda stats: stats.cancelled_texts),
)

_CACHE_TOTALS: tuple[tuple[str, str, Callable[[PrefixCacheStats], float]], ...] = (
    ("looked_up_tokens", "Tokens of texts that were looked up.", lambda c: c.looked_up_tokens),
    ("hit_tokens", "Tokens among them that were found.", lambda c: c.hit_tokens),
    ("evictions", "Blocks that were forgotten for want of room.", lambda c: c.evictions),
)
_CACHE_STATES: tuple[tuple[str, Callable[[PrefixCacheStats], int]], ...] = (
    ("in_use", lambda cache: cache.blocks_in_use),
    ("cached", lambda cache: cache.blocks_cached),
    ("empty", lambda cache: cache.blocks - cache.blocks_in_use - cache.blocks_cached),
)


class _EngineCollector(Collector):
    """The engines' own numbers, read when they are asked for."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "millpond_engine_ready", "1 while the engine takes calls.", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "millpond_queue_tokens",
            "Tokens accepted and not yet run.",
            labels=["model", "priority"],
        )
        totals = {
            name: CounterMetricFamily(f"millpond_{name}", text, labels=["model"])
            for name, text, _ in _TOTALS
        }
        for model in self._models:
            stats = model.engine.stats()
            ready.add_metric([model.name], model.engine.health == "ready")
            waiting.add_metric([model.name, "interactive"], stats.waiting_interactive_tokens)
            waiting.add_metric([model.name, "bulk"], stats.waiting_bulk_tokens)
            for name, _, number in _TOTALS:
                totals[name].add_metric([model.name], number(stats))
        yield from (ready, waiting, *totals.values())
        yield from self._prefix_caches()

    def _prefix_caches(self) -> Iterator[Metric]:
        """Zeros for the models that have none."""
        totals = {
            name: CounterMetricFamily(f"millpond_prefix_cache_{name}", text, labels=["model"])
            for name, text, _ in _CACHE_TOTALS
        }
        blocks = GaugeMetricFamily(
            "millpond_prefix_cache_blocks", "Blocks by state.", labels=["model", "state"]
        )
        for model in self._models:
            cache = model.engine.stats().prefix_cache
            for name, _, number in _CACHE_TOTALS:
                totals[name].add_metric([model.name], number(cache) if cache else 0)
            for state, count in _CACHE_STATES:
                blocks.add_metric([model.name, state], count(cache) if cache else 0)
        yield from (*totals.values(), blocks)
