"""From raw runs to the numbers that tables and plots show. It formats nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

Results = dict[str, Any]
Record = dict[str, Any]
Number = Callable[[Record], float | None]


def records(results: Results, figure: str, setting: str = "", peer: str | None = None) -> list[Any]:
    """The runs of one figure of one peer that gave a result, in the order of their rounds."""
    found = (
        run
        for run in results["runs"]
        if (run["figure"], run["setting"], run["peer"]) == (figure, setting, peer)
    )
    return [run for run in found if "error" not in run]


def settings(results: Results, figure: str) -> list[str]:
    """The settings in which a figure was measured, in their order."""
    return list(dict.fromkeys(r["setting"] for r in results["runs"] if r["figure"] == figure))


def callers(setting: str) -> str:
    """How many there are, in words."""
    return "1 caller" if setting == "1" else f"{setting} callers"


def measured(results: Results) -> list[str]:
    """The peers that were timed, the reference first."""
    names = {run["peer"] for run in results["runs"]}
    return [name for name in results["peers"] if name in names]


def rounds_of(results: Results, peer: str) -> Results:
    """The results of the rounds in which a peer took part, everybody's, so that who was measured
    beside it can be compared with it. Start-up has rounds of its own, for all."""
    numbers = {run["round"] for run in results["runs"] if run["peer"] == peer and _in_turn(run)}
    runs = [run for run in results["runs"] if not _in_turn(run) or run["round"] in numbers]
    return results | {"runs": runs}


def _in_turn(run: Record) -> bool:
    return bool(run["figure"] != "start")


def median(results: Results, peer: str | None, figure: str, setting: str, of: Number) -> Any:
    """The median over the rounds of a number of each run; None if there was none."""
    values = [of(run) for run in records(results, figure, setting, peer)]
    return statistics.median(values) if values and None not in values else None


def ratio(
    results: Results, peer: str, figure: str, setting: str, of: Number, *, to: str | None = None
) -> Any:
    """The median over the rounds of the peer's number over another's of the same round, by default
    the reference's."""
    reference = by_round(results, to or measured(results)[0], figure, setting)
    pairs = by_round(results, peer, figure, setting)
    ratios = [of(pairs[n]) / of(reference[n]) for n in pairs if n in reference]
    return statistics.median(ratios) if ratios else None


def by_round(results: Results, peer: str | None, figure: str, setting: str) -> dict[int, Record]:
    return {run["round"]: run for run in records(results, figure, setting, peer)}


def texts_per_second(run: Record) -> float:
    """Of `ingest` and `during_ingestion`."""
    if "calls" in run:
        return float(run["texts"] * len(run["calls"]) / sum(run["calls"]))
    return float(run["texts"] / run["seconds"])


def queries_per_second(run: Record) -> float:
    """Of `callers`."""
    return float(len(run["times"]) / run["seconds"])


def padding(run: Record) -> float | None:
    """The share of computed tokens that were padding."""
    if not run["computed_tokens"]:
        return None
    return float(1 - run["tokens"] / run["computed_tokens"])


def milliseconds(
    results: Results, peer: str, figure: str, percentile: float, *, setting: str = ""
) -> float | None:
    """A percentile of the times of all rounds together."""
    key = "queries" if figure == "mixed" else "times"
    times = [time for run in records(results, figure, setting, peer) for time in run[key]]
    return float(np.percentile(times, percentile)) * 1000 if times else None


def kept(results: Results, peer: str) -> float | None:
    """Ingestion's throughput while queries are asked, over that of the same round without them."""
    alone = by_round(results, peer, "ingest", "passages")
    beside = by_round(results, peer, "during_ingestion", "")
    shares = [
        texts_per_second(beside[n]) / texts_per_second(alone[n]) for n in beside if n in alone
    ]
    return statistics.median(shares) if shares else None


def share_of_matrix_rate(results: Results, peer: str, workload: str) -> float | None:
    """The operations that the texts need over those the processor could do in the same time."""
    operations = results["texts"][workload]["operations"]
    precision = results["peers"][peer]["precision"]
    rates = by_round(results, None, "matrix_rate", precision)
    runs = by_round(results, peer, "ingest", workload)
    shares = [operations / runs[n]["seconds"] / rates[n]["per_second"] for n in runs if n in rates]
    return statistics.median(shares) if shares else None


def peak_memory(results: Results, peer: str) -> float | None:
    """The most bytes that the peer's process held in the run."""
    found = [run["peak_bytes"] for run in records(results, "memory", "", peer)]
    return max(found) if found and None not in found else None


def start(results: Results, peer: str | None, setting: str = "") -> float | None:
    """Seconds from process start to first vector, or of one of the programs beside it."""
    return median(results, peer, "start", setting, lambda run: run["seconds"])


def errors(results: Results) -> dict[str, str]:
    """The figures that a peer failed in, with what it said the first time."""
    found: dict[str, str] = {}
    for run in results["runs"]:
        if "error" in run:
            where = f"{run['peer']}, {run['figure'].replace('_', ' ')} {run['setting']}".strip()
            found.setdefault(where, run["error"])
    return found
