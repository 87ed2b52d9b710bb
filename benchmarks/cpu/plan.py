"""What one run of the benchmark measures, in which order and how much of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from . import workloads

INTERVAL_S = 0.05  # between queries during ingestion
FEWEST_QUERIES = 64  # of all callers at a time together: a few say nothing
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
    callers=(1, 4, 16, 64),
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


def texts(sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Every list of texts that a request may name: those of the warm-up by their plain names, and
    for each of so many rounds others, which nothing has seen before."""
    mixture = (workloads.queries(24, 12), workloads.passages(16, 13), workloads.chunks(8, 14))
    lists: dict[str, Any] = {"agreement": [text for texts in mixture for text in texts]}
    lists |= _lists(sizes, None)
    for number in range(rounds):
        found = _lists(sizes, number)
        lists |= {of_round(name, number): found[name] for name in found}
    return lists


def of_round(name: str, number: int) -> str:
    """What a list is called in a round."""
    return f"{name}, round {number}"


def _lists(sizes: Sizes, words: int | None) -> dict[str, Any]:
    """One of each kind, of the same lengths whatever the words."""
    job, counts = workloads.PASSAGES_IN_A_JOB, sizes.texts
    lists: dict[str, Any] = {
        "queries": workloads.queries(counts["queries"], words=words),
        "passages": workloads.passages(counts["passages"], words=words),
        "chunks": workloads.chunks(counts["chunks"], words=words),
        "lone": workloads.queries(sizes.lone_queries, 11, words=words),
        "beside queries": workloads.queries(counts["queries"], 16, words=words),
        "beside passages": workloads.passages(counts["passages"], 17, words=words),
        "mixed queries": workloads.queries(counts["queries"], 18, words=words),
    }
    passages = workloads.passages(counts["passages"], 19, words=words)
    lists["jobs"] = [passages[start : start + job] for start in range(0, len(passages), job)]
    for length in sizes.lengths:
        count = sizes.tokens_of_each_length // length
        lists[f"length {length}"] = workloads.of_length(length, count, words=words)
    for count in sizes.callers:
        asked = max(FEWEST_QUERIES, count * sizes.queries_of_a_caller)
        lists[f"callers {count}"] = workloads.queries(asked, 20 + count, words=words)
    return lists


def steps(sizes: Sizes, number: int) -> Iterator[Step]:
    """What a round measures of every peer, but for the mixed workload."""
    for name in (*sizes.texts, *(f"length {length}" for length in sizes.lengths)):
        yield Step("ingest", name, {"texts": of_round(name, number)})
    yield Step("lone_query", request={"queries": of_round("lone", number)})
    for count in sizes.callers:
        queries = of_round(f"callers {count}", number)
        yield Step("callers", str(count), {"queries": queries, "count": count})
    beside = {
        "queries": of_round("beside queries", number),
        "texts": of_round("beside passages", number),
    }
    pace = {"interval_s": INTERVAL_S, "seconds": sizes.ingestion_s}
    yield Step("during_ingestion", request={**beside, **pace})


def mixed_steps(sizes: Sizes, unit: float, round_number: int) -> Iterator[Step]:
    """The mixed workload at every load, lightest first; new arrivals every round."""
    for load in sizes.loads:
        arrivals = workloads.arrivals(load * unit, sizes.mixed_s, seed=round_number)
        lists = {
            "queries": of_round("mixed queries", round_number),
            "jobs": of_round("jobs", round_number),
        }
        request = {**lists, "arrivals": [list(a) for a in arrivals]}
        yield Step("mixed", SHARES_OF_UNIT.format(load, unit), request)
