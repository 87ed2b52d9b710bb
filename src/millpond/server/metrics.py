"""`Metrics`: the application's Prometheus metrics, in a registry of its own.

Stats hooks count batches; totals and queues are read from the engines at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ..engine.engine import Engine
from ..stats import BatchStats, PrefixCacheStats
from .models import ServedModel, ServedModels
from .request_context import RequestContext

__all__ = ["Metrics"]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PRIORITIES = ("interactive", "bulk")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Metrics:
    """One per application. Thread-safe as prometheus-client is."""

    def __init__(self, models: ServedModels) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "millpond_http_requests",
            "Requests answered; status 499 where the client disconnected.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "millpond_http_request_seconds",
            "From the end of the request's headers to the end of its response.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        # labels() takes longer than counting.
        self._by_outcome: dict[tuple[str, str, int | None], tuple[Counter, Histogram]] = {}
        self._by_priority: dict[tuple[str, str], Gauge] = {}
        self.in_progress = Gauge(
            "millpond_http_requests_in_progress",
            "Requests in progress.",
            registry=self.registry,
        )
        self._in_engine = Gauge(
            "millpond_engine_requests_in_progress",
            "Requests submitted to an engine and not finished.",
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
        meters = _BatchMeters(self.registry)
        self._hooks: list[tuple[Engine, Callable[[BatchStats], None]]] = [
            (model.engine, meters.of(model.name)) for model in models
        ]
        for model in models:
            self._rejected.labels(model.name)  # so that it is exported before the first
            for priority in PRIORITIES:
                gauge = self._in_engine.labels(model.name, priority)
                self._by_priority[model.name, priority] = gauge
        for engine, hook in self._hooks:
            engine.add_stats_hook(hook)

    def close(self) -> None:
        """Remove the stats hooks from the engines."""
        for engine, hook in self._hooks:
            engine.remove_stats_hook(hook)

    def answered(self, context: RequestContext) -> None:
        """Count a request that is finished."""
        method = context.scope["method"]
        key = (context.route, method if method in METHODS else "other", context.status)
        if key not in self._by_outcome:
            route, method, status = key
            self._by_outcome[key] = (
                self._requests.labels(route, method, str(status)),
                self._seconds.labels(route),
            )
        requests, seconds = self._by_outcome[key]
        requests.inc()
        seconds.observe(context.seconds)

    def in_engine(self, model: ServedModel, priority: str) -> AbstractContextManager[None]:
        """Count a request as one in the engine inside the `with` block."""
        return self._by_priority[model.name, priority].track_inprogress()

    def rejected(self, model: ServedModel) -> None:
        """Count a request refused because the queue is full."""
        self._rejected.labels(model.name).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def __repr__(self) -> str:
        return f"Metrics(engines={len(self._hooks)})"


# Field of `BatchStats`, name, help and buckets.
_OF_BATCHES = (
    ("texts", "batch_texts", "Texts in a forward pass.", COUNTS),
    ("tokens", "batch_tokens", "Tokens in a forward pass, without padding.", TOKENS),
    ("padded_tokens", "batch_padded_tokens", "Padding tokens in a forward pass.", (0, *TOKENS)),
    (
        "queue_s",
        "batch_queue_seconds",
        "Longest wait of a tokenised text for the forward pass.",
        SECONDS,
    ),
    (
        "tokenize_s",
        "batch_tokenize_seconds",
        "Time to tokenise the texts of a forward pass.",
        SECONDS,
    ),
    (
        "forward_s",
        "batch_forward_seconds",
        "From the launch of a forward pass to the vectors on the host.",
        SECONDS,
    ),
)
# Fields of `EngineStats` and `PrefixCacheStats`, which are the names too, and help.
_TOTALS = {
    "texts": "Texts and pairs computed.",
    "tokens": "Tokens computed.",
    "deduplicated_texts": "Texts that shared the result of an identical text in flight.",
    "cached_tokens": "Tokens read from the prefix cache instead of computed.",
    "padded_tokens": "Padding tokens computed.",
    "truncated_texts": "Texts truncated.",
    "failed_texts": "Texts that the model failed on.",
    "cancelled_texts": "Texts cancelled before they ran.",
}
_CACHE_TOTALS = {
    "looked_up_tokens": "Tokens looked up in the prefix cache.",
    "hit_tokens": "Tokens found in the prefix cache.",
    "evictions": "Blocks evicted from the prefix cache.",
}
_NO_CACHE = PrefixCacheStats(**{field.name: 0 for field in fields(PrefixCacheStats)})


class _BatchMeters:
    """Histograms over forward passes, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._histograms = {
            field: Histogram(
                f"millpond_{name}", text, ["model"], buckets=buckets, registry=registry
            )
            for field, name, text, buckets in _OF_BATCHES
        }

    def of(self, model: str) -> Callable[[BatchStats], None]:
        """A stats hook for a model's engine."""
        meters = [(field, each.labels(model)) for field, each in self._histograms.items()]

        def hook(batch: BatchStats) -> None:
            for field, meter in meters:
                meter.observe(getattr(batch, field))

        return hook


class _EngineCollector(Collector):
    """Reads the engines at each scrape."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        ready = _gauge("millpond_engine_ready", "1 while the engine takes requests.")
        waiting = _gauge("millpond_queue_tokens", "Tokens queued.", "priority")
        replicas = _gauge("millpond_replicas", "Copies of the model that run batches.")
        blocks = _gauge(
            "millpond_prefix_cache_blocks", "Blocks of the prefix cache by state.", "state"
        )
        totals = _counters("millpond", _TOTALS)
        cache_totals = _counters("millpond_prefix_cache", _CACHE_TOTALS)
        for model in self._models:
            stats = model.engine.stats()
            ready.add_metric([model.name], model.engine.health == "ready")
            replicas.add_metric([model.name], stats.replicas)
            waiting.add_metric([model.name, "interactive"], stats.waiting_interactive_tokens)
            waiting.add_metric([model.name, "bulk"], stats.waiting_bulk_tokens)
            _count(totals, model, stats)
            cache = stats.prefix_cache or _NO_CACHE
            _count(cache_totals, model, cache)
            empty = cache.blocks - cache.blocks_in_use - cache.blocks_cached
            blocks.add_metric([model.name, "in_use"], cache.blocks_in_use)
            blocks.add_metric([model.name, "cached"], cache.blocks_cached)
            blocks.add_metric([model.name, "empty"], empty)
        yield from (ready, replicas, waiting, *totals.values(), *cache_totals.values(), blocks)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["model", *labels])


def _counters(prefix: str, texts: Mapping[str, str]) -> dict[str, CounterMetricFamily]:
    return {
        name: CounterMetricFamily(f"{prefix}_{name}", text, labels=["model"])
        for name, text in texts.items()
    }


def _count(counters: Mapping[str, CounterMetricFamily], model: ServedModel, stats: object) -> None:
    for name, counter in counters.items():
        counter.add_metric([model.name], getattr(stats, name))
