"""`docs/benchmarks.md` from a folder of results: `python -m benchmarks.report.page FOLDER`.

Everything on the page comes from `results.json`, `adapters.json` and the plots of the folder, but
for what `notes.md` there has to say about them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..cpu.plan import FULL, QUICK
from . import adapters as adapters_report
from . import aims, comparisons, tables
from .aims import OURS, Reached
from .machine import RESULTS
from .summary import Results
from .tables import number

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
IN_FLOAT32 = "millpond float32"
PLOTS = {
    "Ingestion": ("by-length", "Throughput by length"),
    "Callers at once": ("callers", "Queries a second by callers at once"),
    "Queries during ingestion": ("during-ingestion", "Time of a query while texts are ingested"),
    "Mixed arrivals, time of a query": ("under-load", "Time of a query by requests that arrive"),
}
REPRODUCE = """\
```sh
make bench{arguments}
make bench-adapters
.venv-bench/common/bin/python -m benchmarks.report.page {folder}
```

Run on a machine with nothing else to do. [How it is measured](../benchmarks/README.md), and what
every figure means, stands beside the code."""


def page(results: Results, adapters: dict[str, Any] | None, folder: Path) -> str:
    """The whole page."""
    parts = list(_head(results, folder))
    met = [*aims.reached(results), *(adapters_report.reached(adapters) if adapters else ())]
    parts += ["## What was aimed at", aims_table(met)]
    parts += ["## Where Millpond is not ahead", not_ahead(results)]
    notes = folder / "notes.md"
    if notes.exists():
        parts.append(notes.read_text().strip())
    for title, body in tables.sections(results):
        parts.append(f"## {title}")
        if title in PLOTS and (folder / f"{PLOTS[title][0]}.svg").exists():
            name, words = PLOTS[title]
            parts.append(f"![{words}]({_link(folder / f'{name}.svg')})")
        parts.append(body)
    if adapters:
        parts += ["## The adapters", adapters_report.described(adapters)]
        parts += [adapters_report.table(adapters, file) for file in adapters_report.TITLES]
    parts += ["## Other machines", other_machines(folder)]
    return "\n\n".join(parts) + "\n"


def _head(results: Results, folder: Path) -> Iterator[str]:
    facts, texts = results["machine"], results["texts"]
    yield "# Benchmarks"
    extensions = ", ".join(facts["extensions"]) or "no wide extensions"
    sizes = ", ".join(
        f"{texts[name]['texts']} {name} of {texts[name]['median']} tokens in the median"
        for name in results["sizes"]["texts"]
    )
    loads = ", ".join(f"{load:.1f}" for load in results["load_average_after_each_round"])
    yield (
        f"{facts['processor']}, {facts['cores']} cores, {extensions}; {facts['date']};"
        f" {facts['system']}, Python {facts['python']}. all-MiniLM-L6-v2; {sizes}. Medians of"
        f" {results['sizes']['rounds']} rounds; ratios in brackets are to the first row."
        f" {results['minutes']:.0f} minutes; load average after each round: {loads}."
        f" [Raw runs]({_link(folder / 'results.json')})."
    )
    arguments = _arguments(results["sizes"])
    yield REPRODUCE.format(
        arguments=f" ARGS='{arguments}'" if arguments else "", folder=_from_root(folder)
    )


def _arguments(sizes: dict[str, Any]) -> str:
    """What `run.py` was given to measure so much."""
    quick = sizes["texts"] == QUICK.texts
    rounds, usual = sizes["rounds"], (QUICK if quick else FULL).rounds
    return " ".join(["--quick"] * quick + [f"--rounds {rounds}"] * (rounds != usual))


def aims_table(reached: Sequence[Reached]) -> str:
    """Every aim, reached or missed."""
    lines = ["| | aim | measured | |", "|---|---|---|---|"]
    for title, aim, value in reached:
        written = tables.NOTHING if value is None else aim.written(value)
        lines.append(f"| {title} | {aim} | {written} | {aim.judged(value)} |")
    return "\n".join(lines)


def not_ahead(results: Results) -> str:
    """Every figure in which somebody else is better, with who is best."""
    defaults = list(comparisons.losses(results, OURS, comparisons.rivals(results)))
    float32 = comparisons.rivals(results, precision="float32")
    same = list(comparisons.losses(results, IN_FLOAT32, float32))
    return "\n\n".join(
        [
            "Every figure in which another library is better, and the one that is so by most.",
            f"At its defaults (`{OURS}`), against every library:\n\n{_losses(defaults)}",
            f"In float32, against those that compute in float32:\n\n{_losses(same)}",
        ]
    )


def _losses(found: Sequence[comparisons.Loss]) -> str:
    if not found:
        return "Nowhere in these figures."
    lines = ["| | ahead | theirs | Millpond's | by |", "|---|---|---|---|---|"]
    for loss in found:
        digits = 0 if loss.theirs >= 1000 else 2 if loss.theirs < 10 else 1
        values = f"{number(loss.theirs, digits)} | {number(loss.ours, digits)}"
        lines.append(f"| {loss.title} | {loss.rival} | {values} | {loss.times:.2f} × |")
    return "\n".join(lines)


def other_machines(shown: Path) -> str:
    """Links to everything else there is in the folder of results."""
    single = list(RESULTS.glob("*.md"))
    whole = [path for path in RESULTS.glob("*/results.md") if path.parent != shown.resolve()]
    found = {path.stem: path for path in single} | {path.parent.name: path for path in whole}
    lines = [f"- [{name}]({_link(found[name])})" for name in sorted(found)]
    return "\n".join([*lines, "- GPUs: [docs/gpu.md](gpu.md)"])


def _link(path: Path) -> str:
    """A path as the page links to it."""
    return Path(os.path.relpath(path, PAGE.parent)).as_posix()


def _from_root(path: Path) -> str:
    return Path(os.path.relpath(path, PAGE.parent.parent)).as_posix()


def read(folder: Path) -> tuple[Results, dict[str, Any] | None]:
    """The results of a folder, and those of the adapters where they are there."""
    results: Results = json.loads((folder / "results.json").read_text())
    adapters = folder / "adapters.json"
    return results, json.loads(adapters.read_text()) if adapters.exists() else None


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.report.page FOLDER")
    folder = Path(sys.argv[1])
    PAGE.write_text(page(*read(folder), folder))


if __name__ == "__main__":
    main()
