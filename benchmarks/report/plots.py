"""The plots: `python -m benchmarks.report.plots FOLDER` draws them again from `results.json`.

What is drawn is worked out here without the plotting library, which only this benchmark's own
environment has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import summary
from .summary import Results

KINDS = ("png", "svg")
SHOWN = (  # a plot with every peer cannot be read
    "sentence-transformers",
    "sentence-transformers bfloat16",
    "sentence-transformers OpenVINO",
    "langchain-huggingface",
    "fastembed, batches of 8",
    "infinity_emb",
    "OpenVINO bfloat16 by hand",
    "ONNX Runtime by hand",
    "millpond float32",
    "millpond auto",
)
Points = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Plot:
    """One picture: a line for every peer."""

    name: str
    title: str
    across: str
    up: str
    points: Callable[[Results], Points]
    logarithmic: bool = True
    """Whether the vertical axis is; the horizontal one always is."""


def shown(results: Results) -> list[str]:
    """The peers that are drawn, of those that were timed."""
    return [name for name in summary.measured(results) if name in SHOWN]


def by_length(results: Results) -> Points:
    """Tokens a second of texts of one length."""
    lengths = [s for s in summary.settings(results, "ingest") if s.startswith("length ")]
    found: Points = {}
    for peer in shown(results):
        for setting in lengths:
            speed = summary.median(results, peer, "ingest", setting, summary.texts_per_second)
            texts = results["texts"][setting]
            mean = texts["tokens"] / texts["texts"]
            _add(found, peer, mean, speed and speed * mean)
    return found


def by_callers(results: Results) -> Points:
    """Queries a second of so many callers at once."""
    found: Points = {}
    for peer in shown(results):
        for setting in summary.settings(results, "callers"):
            speed = summary.median(results, peer, "callers", setting, summary.queries_per_second)
            _add(found, peer, float(setting), speed)
    return found


def under_load(results: Results) -> Points:
    """The 99th percentile of a query, by the requests that arrive each second."""
    found: Points = {}
    for peer in shown(results):
        for setting in summary.settings(results, "mixed"):
            share, _, rest = setting.partition(" × ")
            rate = float(share) * float(rest.split()[0])
            p99 = summary.milliseconds(results, peer, "mixed", 99, setting=setting)
            _add(found, peer, rate, p99)
    return found


PLOTS = (
    Plot("by-length", "Throughput by length", "tokens of a text", "tokens/s", by_length),
    Plot(
        "under-load",
        "Queries while requests arrive (80 % queries, 20 % ingestion)",
        "requests/s that arrive",
        "99th percentile of a query, ms",
        under_load,
    ),
    Plot("callers", "Queries at once", "callers", "queries/s", by_callers),
)


def waits(results: Results) -> dict[str, tuple[float, float, float]]:
    """Of a query, ms: median and 99th percentile during ingestion, 99th percentile without."""
    found = {}
    for peer in shown(results):
        values = (
            summary.milliseconds(results, peer, "during_ingestion", 50),
            summary.milliseconds(results, peer, "during_ingestion", 99),
            summary.milliseconds(results, peer, "lone_query", 99),
        )
        if None not in values:
            found[peer] = values
    return found  # type: ignore[return-value]


def write(results: Results, folder: Path) -> None:
    """Every plot into `folder`, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "millpond"  # the same picture is the same file
    colours = _colours(results)
    for plot in PLOTS:
        _save(_lines(plot, plot.points(results), colours), folder, plot.name)
    _save(_bars(waits(results), colours), folder, "during-ingestion")


def _add(points: Points, peer: str, across: float, up: float | None) -> None:
    if up is not None:
        points.setdefault(peer, []).append((across, up))


def _colours(results: Results) -> dict[str, Any]:
    """Millpond in blues, everybody else from a palette without them."""
    from matplotlib import colormaps

    ours = iter(("#08519c", "#6baed6"))
    theirs = iter(colormaps["tab10"].colors[1:])
    names = sorted(shown(results))
    return {name: next(ours if name.startswith("millpond") else theirs) for name in names}


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(axis: Any) -> None:
    """1, 2, 5, 10, … on a logarithmic axis."""
    from matplotlib.ticker import LogLocator

    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter("{x:,g}")


def _lines(plot: Plot, points: Points, colours: dict[str, Any]) -> Any:
    figure, axes = _axes(plot.title)
    for peer, line in points.items():
        ours = peer.startswith("millpond")
        across, up = zip(*line, strict=True)
        width = 2.5 if ours else 1.2
        axes.plot(across, up, "o-", label=peer, color=colours[peer], linewidth=width)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    if plot.logarithmic:
        axes.set_yscale("log")
        _label(axes.yaxis)
    axes.set_xlabel(plot.across)
    axes.set_ylabel(plot.up)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _bars(times: dict[str, tuple[float, float, float]], colours: dict[str, Any]) -> Any:
    figure, axes = _axes("Time of a query while texts are ingested")
    names = sorted(times, key=lambda name: -times[name][1])
    for row, name in enumerate(names):
        median, p99, idle = times[name]
        axes.barh(row, p99 - median, left=median, color=colours[name], height=0.5)
        axes.plot(idle, row, "k|", markersize=14)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    _label(axes.xaxis)
    axes.set_xlabel("ms: from the median to the 99th percentile; the line is the 99th when idle")
    return figure


def _save(figure: Any, folder: Path, name: str) -> None:
    from matplotlib import pyplot

    for kind in KINDS:
        figure.savefig(folder / f"{name}.{kind}", dpi=120, metadata=_no_date(kind))
    pyplot.close(figure)


def _no_date(kind: str) -> dict[str, None]:
    return {"Date": None} if kind == "svg" else {}


def main() -> None:
    for name in sys.argv[1:]:
        folder = Path(name)
        write(json.loads((folder / "results.json").read_text()), folder)


if __name__ == "__main__":
    main()
