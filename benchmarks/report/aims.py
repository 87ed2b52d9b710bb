"""What Millpond aims at on a CPU, and how far it is: ratios in one run, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from . import summary
from .summary import Results
from .tables import FLOOR, over

OURS, IN_INT8 = "millpond auto", "millpond int8"
INCUMBENTS = {
    "langchain-huggingface": "millpond in LangChain",
    "llama-index-embeddings-huggingface": "millpond in LlamaIndex",
}


@dataclass(frozen=True)
class Aim:
    """A bound, and what its number counts."""

    limit: float
    at_most: bool = False
    unit: str = "×"

    def written(self, value: float) -> str:
        """A value as tables show it."""
        if self.unit == "%":
            return f"{value:.0%}"
        return f"{value:.2f} {self.unit}"

    def judged(self, value: float | None) -> str:
        """Whether a value is within the bound."""
        if value is None:
            return "not measured"
        within = value <= self.limit if self.at_most else value >= self.limit
        return "reached" if within else "**missed**"

    def __str__(self) -> str:
        limit = f"{self.limit:.0%}" if self.unit == "%" else f"{self.limit:g} {self.unit}"
        return f"{'≤' if self.at_most else '≥'} {limit}"


class Reached(NamedTuple):
    """One aim, and what was measured."""

    title: str
    aim: Aim
    value: float | None


def others(results: Results) -> list[str]:
    """The peers that were timed and have nothing of Millpond in them."""
    return [name for name in summary.measured(results) if not name.startswith("millpond")]


def best(results: Results, figure: str, setting: str, of: summary.Number) -> str | None:
    """Whose ratio to the reference is the highest, Millpond apart."""
    found = {name: summary.ratio(results, name, figure, setting, of) for name in others(results)}
    timed = {name: value for name, value in found.items() if value is not None}
    return max(timed, key=timed.__getitem__) if timed else None


def reached(results: Results) -> Iterator[Reached]:
    """Every aim of the full run, in the order of the tables."""
    if OURS not in summary.measured(results):
        return
    first = summary.measured(results)[0]
    for workload in ("passages", "chunks"):
        yield from _ingestion(results, workload, first)
    lone = _percentile(results, "lone_query", 50)
    yield Reached(f"a lone query, p50: over {first}", Aim(0.5, True), over(lone(OURS), lone(first)))
    for theirs, ours in INCUMBENTS.items():
        value = _ratio(results, ours, theirs, "callers", "64", summary.queries_per_second)
        yield Reached(f"64 callers, queries/s: {ours} over {theirs}", Aim(8), value)
    busy, idle = (_percentile(results, name, 99) for name in ("during_ingestion", "lone_query"))
    yield Reached(
        "a query during ingestion, p99: over the idle one",
        Aim(5, True),
        over(busy(OURS), idle(OURS)),
    )
    yield Reached("ingestion kept beside queries", Aim(0.75, unit="%"), summary.kept(results, OURS))
    floor, start = summary.start(results, None, FLOOR), summary.start(results, OURS)
    yield Reached(
        "first vector: over importing torch and reading weights", Aim(1.2, True), over(start, floor)
    )
    seconds = summary.start(results, None, "import millpond")
    yield Reached("`import millpond`", Aim(0.3, True, "s"), seconds)


def _ingestion(results: Results, workload: str, first: str) -> Iterator[Reached]:
    arguments = ("ingest", workload, summary.texts_per_second)
    value = _ratio(results, OURS, first, *arguments)
    yield Reached(f"{workload}, texts/s: over {first}", Aim(3), value)
    rival = best(results, *arguments)
    if rival is not None and rival != first:
        value = _ratio(results, OURS, rival, *arguments)
        yield Reached(f"{workload}, texts/s: over the best peer, {rival}", Aim(1.1), value)
    value = _ratio(results, IN_INT8, OURS, *arguments)
    yield Reached(f"{workload}, texts/s: int8 over {OURS}", Aim(1.3), value)


def _ratio(
    results: Results, ours: str, theirs: str, figure: str, setting: str, of: summary.Number
) -> float | None:
    found: float | None = summary.ratio(results, ours, figure, setting, of, to=theirs)
    return found


def _percentile(results: Results, figure: str, percentile: float) -> Callable[[str], float | None]:
    return lambda peer: summary.milliseconds(results, peer, figure, percentile)
