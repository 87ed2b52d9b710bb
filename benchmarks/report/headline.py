"""The README's plot: `python -m benchmarks.report.headline` draws docs/headline.svg again.

Two figures, each from the raw results of one run: queries of many callers on a CPU, and ingestion
on a GPU. It needs no plotting library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from . import summary

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "headline.svg"
ADAPTERS = ROOT / "benchmarks/results/2026-11-25-intel-xeon-2-cores/adapters.json"
GPU = ROOT / "benchmarks/results/gpu-h200/gpu.json"
GPU_MODEL = "bge-base"

WIDTH, LABELS, BARS, LINE = 760, 268, 380, 30
STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de; }
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 14px; }
  .note { fill: #59636e; font-size: 12px; }
  .theirs { fill: #8c959f; }
  .ours { fill: #0969da; }
"""


@dataclass(frozen=True)
class Bar:
    """One library, at one precision."""

    label: str
    value: float
    times: float | None = None
    """Over the first bar, the median of the rounds' own ratios; None for the first itself."""


@dataclass(frozen=True)
class Panel:
    """A figure: what is measured, on what, and a bar for every library."""

    title: str
    condition: str
    bars: tuple[Bar, ...]

    @property
    def height(self) -> int:
        return 58 + LINE * len(self.bars)


def callers() -> Panel:
    """Queries a second of 64 concurrent `aembed_query` calls."""
    file = json.loads(ADAPTERS.read_text(encoding="utf-8"))
    results, machine = file["langchain"], file["machine"]

    def bar(label: str, peer: str, first: bool = False) -> Bar:
        what = (results, peer, "callers", "64", summary.queries_per_second)
        value = summary.median(*what)
        assert value is not None
        return Bar(label, value, None if first else summary.ratio(*what))

    cores, date = machine["cores"], machine["date"]
    return Panel(
        "64 concurrent aembed_query calls in LangChain, queries a second",
        f"all-MiniLM-L6-v2 on {cores} cores of an Intel Xeon with AMX, {date}",
        (
            bar("HuggingFaceEmbeddings, float32", "langchain-huggingface", first=True),
            bar("Millpond, float32", "millpond in LangChain, float32"),
            bar("Millpond, default (bfloat16)", "millpond in LangChain"),
        ),
    )


def ingestion() -> Panel:
    """Tokens a second of short passages."""
    file = json.loads(GPU.read_text(encoding="utf-8"))
    (figure,) = (each for each in file["figures"] if _is_ingestion_in_half_precision(each))
    return Panel(
        "Ingestion of passages, thousand tokens a second",
        f"{GPU_MODEL}'s shape with random weights on one {file['machine']['gpu']}, "
        f"{file['machine']['date']}; sentence-transformers at its best batch size",
        (
            Bar("sentence-transformers, float16", figure["peer"] / 1000),
            Bar("Millpond, default (float16)", figure["millpond"] / 1000, figure["ratio"]),
        ),
    )


def _is_ingestion_in_half_precision(figure: dict[str, Any]) -> bool:
    return (figure["model"], figure["figure"]) == (
        GPU_MODEL,
        "passages, tokens/s",
    ) and "float16" in figure["other"]


def _panel(panel: Panel, top: int) -> list[str]:
    lines = [
        f'<text class="title" x="16" y="{top + 22}">{escape(panel.title)}</text>',
        f'<text class="note" x="16" y="{top + 40}">{escape(panel.condition)}</text>',
    ]
    most = max(bar.value for bar in panel.bars)
    for place, bar in enumerate(panel.bars):
        y, width = top + 52 + LINE * place, round(BARS * bar.value / most, 1)
        kind = "ours" if bar.times else "theirs"
        times = f" ({bar.times:.1f} ×)" if bar.times else ""
        lines += [
            f'<text x="{LABELS - 8}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{width}" height="20" rx="2"/>',
            f'<text x="{LABELS + width + 6}" y="{y + 15}">{bar.value:,.0f}{times}</text>',
        ]
    return lines


def drawn() -> str:
    """The picture as SVG."""
    panels = (callers(), ingestion())
    height = sum(panel.height for panel in panels) + 16
    about = "; ".join(
        f"{panel.title}: " + ", ".join(f"{bar.label} {bar.value:,.0f}" for bar in panel.bars)
        for panel in panels
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(about)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
    ]
    top = 4
    for panel in panels:
        lines += _panel(panel, top)
        top += panel.height
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
