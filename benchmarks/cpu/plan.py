"""What one run of the benchmark measures, in which order and how much of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from . import workloads

INTERVAL_S = 0.05  # between queries during ingestion
SHARES_OF_UNIT = "{:g} × {:.0f} requests/s"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rounds: int
    start_rounds: int
    texts: dict[str, int]
    """How many of `queries`, `passages` and `chunks` are ingested in one call."""
    lone_queries: int
    lengths: tuple[int, ...]
    tokens_of_each_length: int
    callers: tuple[int, ...]
    queries_of_a_caller: int
    ingestion_s: float
    """How long ingestion goes on while queries are timed, at least."""
    loads: tuple[float, ...]
    """Of the mixed workload: 1 keeps the reference busy."""
    mixed_s: float
    """How long requests arrive."""
    mixed_rounds: int
    """In how many of the rounds they do."""

    def with_rounds(self, rounds: int) -> Self:
        """The same with another number of rounds."""
        return replace(self, rounds=rounds, start_rounds=rounds)


FULL = Sizes(
    rounds=5,
    start_rounds=3,
    texts={"queries": 512, "passages": 256, "chunks": 64},
    lone_queries=100,
    lengths=(8, 16, 32, 64, 128, 256, 512),
    tokens_of_each_length=4096,
    callers=(1, 4, 16, 64),
    queries_of_a_caller=4,
    ingestion_s=6,
    loads=(0.5, 1, 2, 4),
    mixed_s=5,
    mixed_rounds=2,
)
QUICK = Sizes(
    rounds=3,
    start_rounds=1,
    texts={"queries": 128, "passages": 64, "chunks": 16},
    lone_queries=40,
    lengths=(16, 64, 512),
    tokens_of_each_length=1024,
    callers=(8, 64),
    queries_of_a_caller=2,
    ingestion_s=1.5,
    loads=(0.5, 2),
    mixed_s=2,
    mixed_rounds=1,
)


@dataclass(frozen=True)
class Step:
    """One figure, as `worker.py` is asked for it. Strings in the request name lists of texts."""

    figure: str
    setting: str = ""
    request: dict[str, Any] = field(default_factory=dict)


def texts(sizes: Sizes) -> dict[str, Any]:
    """Every list of texts by the name that steps use."""
    queries = workloads.queries(sizes.texts["queries"])
    passages = workloads.passages(sizes.texts["passages"])
    job = workloads.PASSAGES_IN_A_JOB
    mixture = (workloads.queries(24, 12), workloads.passages(16, 13), workloads.chunks(8, 14))
    lists: dict[str, Any] = {
        "queries": queries,
        "passages": passages,
        "chunks": workloads.chunks(sizes.texts["chunks"]),
        "lone": workloads.queries(sizes.lone_queries, seed=11),
        "agreement": [text for texts in mixture for text in texts],
        "jobs": [passages[start : start + job] for start in range(0, len(passages), job)],
    }
    for length in sizes.lengths:
        count = sizes.tokens_of_each_length // length
        lists[f"length {length}"] = workloads.of_length(length, count)
    for count in sizes.callers:
        lists[f"callers {count}"] = workloads.queries(count * sizes.queries_of_a_caller, seed=15)
    return lists


def steps(sizes: Sizes) -> Iterator[Step]:
    """What a round measures of every peer, but for the mixed workload."""
    for name in (*sizes.texts, *(f"length {length}" for length in sizes.lengths)):
        yield Step("ingest", name, {"texts": name})
    yield Step("lone_query", request={"queries": "lone"})
    for count in sizes.callers:
        yield Step("callers", str(count), {"queries": f"callers {count}", "count": count})
    pace = {"interval_s": INTERVAL_S, "seconds": sizes.ingestion_s}
    yield Step("during_ingestion", request={"queries": "queries", "texts": "passages", **pace})


def mixed_steps(sizes: Sizes, unit: float, round_number: int) -> Iterator[Step]:
    """The mixed workload at every load, lightest first; new arrivals every round."""
    for load in sizes.loads:
        arrivals = workloads.arrivals(load * unit, sizes.mixed_s, seed=round_number)
        request = {"queries": "queries", "jobs": "jobs", "arrivals": [list(a) for a in arrivals]}
        yield Step("mixed", SHARES_OF_UNIT.format(load, unit), request)
