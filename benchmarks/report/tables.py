"""The tables: `python -m benchmarks.report.tables FOLDER` writes them again from `results.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import summary
from .summary import Results

NOTHING = "–"
FLOOR = "torch, BertModel and the weights"
Cells = Callable[[Results, str], Sequence[str]]


def number(value: float | None, digits: int = 1, times: float | None = None) -> str:
    """A number for a cell, with its ratio to the reference where there is one."""
    if value is None:
        return NOTHING
    written = f"{value:,.{digits}f}"
    return written if times is None else f"{written} ({times:.2f} ×)"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def over(value: float | None, other: float | None) -> float | None:
    """A ratio, where both are known."""
    return value / other if value is not None and other else None


def table(results: Results, headings: Sequence[str], cells: Cells) -> str:
    """One row for every peer that was timed."""
    rows = [("", *headings), ("---",) * (len(headings) + 1)]
    rows += [(peer, *cells(results, peer)) for peer in summary.measured(results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def ingestion(results: Results, peer: str) -> list[str]:
    cells = []
    for workload in results["sizes"]["texts"]:
        arguments = (results, peer, "ingest", workload, summary.texts_per_second)
        cells.append(number(summary.median(*arguments), times=summary.ratio(*arguments)))
    per_second = summary.median(results, peer, "ingest", "chunks", summary.texts_per_second)
    chunks = results["texts"]["chunks"]
    tokens = per_second and per_second * chunks["tokens"] / chunks["texts"]
    waste = summary.median(results, peer, "ingest", "passages", summary.padding)
    share = summary.share_of_matrix_rate(results, peer, "chunks")
    return [*cells, number(tokens, 0), percent(waste), percent(share)]


def lone_query(results: Results, peer: str) -> list[str]:
    reference, same = summary.measured(results)[0], summary.rounds_of(results, peer)
    cells = []
    for percentile in (50, 99):
        value = summary.milliseconds(results, peer, "lone_query", percentile)
        base = summary.milliseconds(same, reference, "lone_query", percentile)
        cells.append(number(value, times=over(value, base)))
    return cells


def callers(results: Results, peer: str) -> list[str]:
    cells = []
    for setting in summary.settings(results, "callers"):
        arguments = (results, peer, "callers", setting, summary.queries_per_second)
        p99 = summary.milliseconds(results, peer, "callers", 99, setting=setting)
        cells.append(number(summary.median(*arguments), times=summary.ratio(*arguments)))
        cells.append(number(p99))
    return cells


def during_ingestion(results: Results, peer: str) -> list[str]:
    p50, p99 = (summary.milliseconds(results, peer, "during_ingestion", p) for p in (50, 99))
    idle = summary.milliseconds(results, peer, "lone_query", 99)
    speed = summary.median(results, peer, "during_ingestion", "", summary.texts_per_second)
    kept = summary.kept(results, peer)
    return [number(p50), number(p99), number(over(p99, idle)), number(speed), percent(kept)]


def mixed(results: Results, peer: str) -> list[str]:
    cells = []
    for setting in summary.settings(results, "mixed"):
        p50, p99 = (
            summary.milliseconds(results, peer, "mixed", p, setting=setting) for p in (50, 99)
        )
        cells.append(NOTHING if p50 is None else f"{number(p50, 0)} / {number(p99, 0)}")
    return cells


def start_up(results: Results, peer: str) -> list[str]:
    seconds = summary.start(results, peer)
    peak = summary.peak_memory(results, peer)
    floor = summary.start(results, None, FLOOR)
    memory = number(peak and peak / 2**20, 0)
    return [number(seconds, 2), number(over(seconds, floor), 2), memory]


def peers(results: Results) -> str:
    """Who took part: with what, how exactly, or why not."""
    lines = ["| | what is called | least cosine | largest difference |", "|---|---|---|---|"]
    for name, entry in results["peers"].items():
        agreement = entry["agreement"]
        found = (
            f"{agreement['cosine']:.5f} | {agreement['difference']:.0e}"
            if agreement
            else f"{NOTHING} | {NOTHING}"
        )
        lines.append(f"| {name} | {entry['about']} | {found} |")
    return "\n".join(lines)


def problems(results: Results) -> str:
    """Peers that could not be timed, and figures that failed, with what was said."""
    found = results["failures"] | summary.errors(results)
    if not found:
        return "None."
    return "\n".join(f"- {name}: `{' '.join(error.split())}`" for name, error in found.items())


def versions(results: Results) -> str:
    """One line for every environment."""
    lines: dict[str, dict[str, str]] = {}
    for entry in results["peers"].values():
        lines.setdefault(entry["environment"], {}).update(entry["versions"] or {})
    return "\n".join(
        f"- {name}: {', '.join(f'{library} {number}' for library, number in found.items())}"
        for name, found in lines.items()
    )


def programs(results: Results) -> str:
    """What start-up is held to."""
    lines = (
        f"- {name}: {number(summary.start(results, None, name), 2)} s"
        for name in summary.settings(results, "start")
        if name
    )
    return "\n".join(lines)


def sections(results: Results) -> list[tuple[str, str]]:
    """Title and body of everything in the report."""
    sizes = results["sizes"]
    work = [f"{workload}, texts/s" for workload in sizes["texts"]]
    share = ["chunks, tokens/s", "padding (passages)", "of the matrix rate (chunks)"]
    during = ["p50 ms", "p99 ms", "p99 over idle p99", "ingestion, texts/s", "ingestion kept"]
    counts = map(summary.callers, summary.settings(results, "callers"))
    at_once = [word for count in counts for word in (f"{count}, queries/s", "p99 ms")]
    arriving = [f"{load}: p50 / p99 ms" for load in summary.settings(results, "mixed")]
    first = ["first vector, s", "over the floor", "peak memory, MiB"]
    return [
        ("Ingestion", table(results, [*work, *share], ingestion)),
        ("A lone query", table(results, ["p50 ms", "p99 ms"], lone_query)),
        ("Callers at once", table(results, at_once, callers)),
        ("Queries during ingestion", table(results, during, during_ingestion)),
        ("Mixed arrivals, time of a query", table(results, arriving, mixed)),
        (
            "Start-up and memory",
            f"{table(results, first, start_up)}\n\nBeside it:\n\n{programs(results)}",
        ),
        ("Who took part", peers(results)),
        ("Not measured", problems(results)),
        ("Versions", versions(results)),
    ]


def markdown(results: Results) -> str:
    """The whole report."""
    facts = results["machine"]
    extensions = ", ".join(facts["extensions"]) or "no wide extensions"
    loads = ", ".join(f"{load:.1f}" for load in results["load_average_after_each_round"])
    texts = results["texts"]
    sizes = ", ".join(
        f"{texts[name]['texts']} {name} of {texts[name]['median']} tokens in the median"
        for name in results["sizes"]["texts"]
    )
    lines = [
        f"# {facts['date']}, {facts['processor']}, {facts['cores']} cores",
        "",
        f"{facts['system']}, {extensions}, Python {facts['python']}. all-MiniLM-L6-v2; {sizes}.",
        f"{results['sizes']['rounds']} rounds; ratios in brackets are to the first row, medians of",
        f"the rounds' own. Load average after each round: {loads}.",
    ]
    for title, body in sections(results):
        lines += ["", f"## {title}", "", body]
    return "\n".join(lines) + "\n"


def write(results: Results, folder: Path) -> None:
    """`results.md` in `folder`."""
    (folder / "results.md").write_text(markdown(results))


def main() -> None:
    for name in sys.argv[1:]:
        folder = Path(name)
        loaded: dict[str, Any] = json.loads((folder / "results.json").read_text())
        write(loaded, folder)


if __name__ == "__main__":
    main()
