"""The adapters' table: `python -m benchmarks.report.adapters FOLDER` writes it again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import summary
from .aims import Aim, Reached
from .summary import Results
from .tables import number, over

Value = Callable[[Results, str], float | None]


@dataclass(frozen=True)
class Row:
    """One figure of the objects of one file."""

    file: str
    title: str
    aim: Aim
    """Of the ratio."""
    value: Value
    ratio: Value
    """To the incumbent."""


def _rate(figure: str, setting: str, of: summary.Number) -> tuple[Value, Value]:
    return (
        lambda results, peer: summary.median(results, peer, figure, setting, of),
        lambda results, peer: summary.ratio(results, peer, figure, setting, of),
    )


def _percentile(figure: str, percentile: float, setting: str = "") -> tuple[Value, Value]:
    def value(results: Results, peer: str) -> float | None:
        return summary.milliseconds(results, peer, figure, percentile, setting=setting)

    return value, lambda results, peer: over(value(results, peer), value(results, _first(results)))


def _first(results: Results) -> str:
    return summary.measured(results)[0]


def _p99_over_their_median(results: Results, peer: str) -> float | None:
    ours = summary.milliseconds(results, peer, "callers", 99, setting="64")
    theirs = summary.milliseconds(results, _first(results), "callers", 50, setting="64")
    return over(ours, theirs)


ROWS = (
    Row(
        "langchain",
        "64 `aembed_query` at a time, queries/s",
        Aim(8),
        *_rate("callers", "64", summary.queries_per_second),
    ),
    Row(
        "langchain",
        "their p99, ms, and over the incumbent's p50",
        Aim(1, True),
        _percentile("callers", 99, "64")[0],
        _p99_over_their_median,
    ),
    Row(
        "langchain",
        "`embed_query` during `aembed_documents`, p50 ms",
        Aim(0.5, True),
        *_percentile("during_ingestion", 50),
    ),
    Row("langchain", "the same, p99 ms", Aim(0.5, True), *_percentile("during_ingestion", 99)),
    Row(
        "langchain",
        "the ingestion beside it, texts/s",
        Aim(2),
        *_rate("during_ingestion", "", summary.texts_per_second),
    ),
    Row(
        "llama_index",
        "`VectorStoreIndex`, chunks/s",
        Aim(2.5),
        *_rate("index", "", summary.texts_per_second),
    ),
)
TITLES = {"langchain": "LangChain", "llama_index": "LlamaIndex"}


def table(found: Mapping[str, Any], file: str) -> str:
    """Every figure of one file's objects, a column for each."""
    results = found[file]
    names = list(results["peers"])
    lines = [f"| | {' | '.join(names)} | aim |", "|---" * (len(names) + 2) + "|"]
    for row in (row for row in ROWS if row.file == file):
        cells = [number(row.value(results, name), times=row.ratio(results, name)) for name in names]
        lines.append(f"| {row.title} | {' | '.join(cells)} | {row.aim} |")
    agreements = [results["peers"][name]["agreement"] for name in names]
    differences = [f"{a['difference']:.0e}" for a in agreements]
    lines.append(
        f"| largest difference of a number | {' | '.join(differences)} | 1e-05 in float32 |"
    )
    if hits := results["same_best_hit"]:
        shares = [f"{hits[name]:.0%}" for name in names]
        lines.append(f"| the same best hit | {' | '.join(shares)} | 100% in float32 |")
    return "\n".join(lines)


def reached(found: Mapping[str, Any]) -> list[Reached]:
    """Every row's aim, and what Millpond's adapter reached at its defaults."""
    return [
        Reached(
            f"{TITLES[row.file]}: {row.title}",
            row.aim,
            row.ratio(found[row.file], _auto(found[row.file])),
        )
        for row in ROWS
    ]


def _auto(results: Results) -> str:
    """Millpond's adapter at its defaults."""
    return next(name for name in results["peers"] if name.startswith("millpond"))


def described(found: Mapping[str, Any]) -> str:
    """The machine, the versions and the amounts, in a few lines."""
    facts, amounts = found["machine"], found["amounts"]
    versions: dict[str, str] = {}
    for file in TITLES:
        for entry in found[file]["peers"].values():
            versions |= entry["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores; Python {facts['python']},"
        f" {listed}. {amounts['rounds']} rounds, {amounts['queries']} queries,"
        f" {amounts['passages']} passages again and again,"
        f" {amounts['chunks']} chunks of {found['tokens_of_a_chunk']:.0f} tokens in the mean."
        " Ratios are to the first column, medians of the rounds' own."
    )


def markdown(found: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = ["# The adapters beside the incumbents", described(found)]
    for file, title in TITLES.items():
        parts += [f"## {title}", table(found, file)]
    return "\n\n".join(parts) + "\n"


def write(found: Mapping[str, Any], folder: Path) -> None:
    """`adapters.md` in `folder`."""
    (folder / "adapters.md").write_text(markdown(found))


def main() -> None:
    for name in sys.argv[1:]:
        folder = Path(name)
        write(json.loads((folder / "adapters.json").read_text()), folder)


if __name__ == "__main__":
    main()
