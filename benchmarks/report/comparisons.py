"""Every figure of Millpond's beside everybody else's, to find those where it is not ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import summary
from .aims import others
from .summary import Results
from .tables import over

Value = Callable[[str], float | None]


@dataclass(frozen=True)
class Comparison:
    """One figure of every peer."""

    title: str
    value: Value
    more_is_better: bool = True


@dataclass(frozen=True)
class Loss:
    """A figure in which somebody is ahead of Millpond."""

    title: str
    rival: str
    theirs: float
    ours: float
    times: float
    """How many times better theirs is."""


def comparisons(results: Results) -> Iterator[Comparison]:
    """All figures that are shown, in the order of the tables."""
    ingestion = summary.settings(results, "ingest")
    for setting in ingestion:
        title = f"ingestion, {setting.replace('length ', 'texts of ')}{_tokens(setting)}, texts/s"
        yield Comparison(title, _median(results, "ingest", setting, summary.texts_per_second))
    for percentile in (50, 99):
        title = f"a lone query, p{percentile} ms"
        yield Comparison(title, _percentile(results, "lone_query", "", percentile), False)
    for setting in summary.settings(results, "callers"):
        value = _median(results, "callers", setting, summary.queries_per_second)
        yield Comparison(f"{summary.callers(setting)}, queries/s", value)
        value = _percentile(results, "callers", setting, 99)
        yield Comparison(f"{summary.callers(setting)}, p99 ms", value, False)
    for percentile in (50, 99):
        value = _percentile(results, "during_ingestion", "", percentile)
        yield Comparison(f"a query during ingestion, p{percentile} ms", value, False)
    value = _median(results, "during_ingestion", "", summary.texts_per_second)
    yield Comparison("ingestion beside queries, texts/s", value)
    yield Comparison("ingestion kept beside queries", lambda peer: summary.kept(results, peer))
    for setting in summary.settings(results, "mixed"):
        for percentile in (50, 99):
            value = _percentile(results, "mixed", setting, percentile)
            yield Comparison(f"a query at {setting}, p{percentile} ms", value, False)
    yield Comparison("first vector, s", lambda peer: summary.start(results, peer), False)
    yield Comparison("peak memory, MiB", lambda peer: _memory(results, peer), False)


def losses(results: Results, ours: str, rivals: Sequence[str]) -> Iterator[Loss]:
    """Where one of the rivals is ahead, and the one that is so by most, each by its own rounds."""
    found: dict[str, list[Loss]] = {entry.title: [] for entry in comparisons(results)}
    for rival in rivals:
        for comparison in comparisons(summary.rounds_of(results, rival)):
            loss = _loss(comparison, ours, rival)
            if loss is not None and loss.times > 1:
                found[comparison.title].append(loss)
    return (max(ahead, key=lambda loss: loss.times) for ahead in found.values() if ahead)


def rivals(results: Results, *, precision: str | None = None) -> list[str]:
    """Who Millpond is compared with: everybody, or those that compute in one precision."""
    peers = results["peers"]
    return [name for name in others(results) if precision in (None, peers[name]["precision"])]


def _loss(comparison: Comparison, ours: str, rival: str) -> Loss | None:
    mine, theirs = comparison.value(ours), comparison.value(rival)
    times = over(theirs, mine) if comparison.more_is_better else over(mine, theirs)
    if mine is None or theirs is None or times is None:
        return None
    return Loss(comparison.title, rival, theirs, mine, times)


def _tokens(setting: str) -> str:
    return " tokens" if setting.startswith("length ") else ""


def _median(results: Results, figure: str, setting: str, of: summary.Number) -> Value:
    return lambda peer: summary.median(results, peer, figure, setting, of)


def _percentile(results: Results, figure: str, setting: str, percentile: float) -> Value:
    return lambda peer: summary.milliseconds(results, peer, figure, percentile, setting=setting)


def _memory(results: Results, peer: str) -> float | None:
    peak = summary.peak_memory(results, peer)
    return None if peak is None else peak / 2**20
