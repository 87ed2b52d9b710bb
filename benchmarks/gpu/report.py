"""What the GPU benchmark found, and where it is written: `gpu.json` and `gpu.md`.

Both are written after every step, so that a run that is cut off leaves what it has.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sentence_transformers
import torch
import transformers

import millpond

from .clock import Clock, OutOfTime

Result = TypeVar("Result")


@dataclass(frozen=True)
class Aim:
    """A bound for a figure's ratio, or for Millpond's value where it has none."""

    limit: float
    at_most: bool = False

    def is_reached(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:.3g}"


AIMS = {
    "passages": Aim(3),
    "chunks": Aim(2),
    "query": Aim(1 / 3, at_most=True),
    "callers": Aim(10),
    "matrix": Aim(0.5),
    "batch_invariant": Aim(1.25, at_most=True),
    "prefixes": Aim(2),
    "nothing shared": Aim(0.97),
    "pairs of MiniLM-L6": Aim(5),
    "pairs of bge-reranker-base": Aim(3),
    "pairs of XLM-R-large": Aim(2.5),
    "pairs of Qwen3-Reranker-0.6B": Aim(4),
    "rank beside bulk": Aim(2, at_most=True),
    "sparse": Aim(3),
    "token vectors": Aim(3),
}
MATRIX_MODELS = ("bge-large", "Qwen3-0.6B")  # the others are too narrow to be held to it


def aim_of(kind: str | None, model: str) -> Aim | None:
    """What a kind of figure is held to."""
    if kind is None or (kind == "matrix" and model not in MATRIX_MODELS):
        return None
    return AIMS.get(kind)


@dataclass
class Report:
    """What was found so far, and where it is written."""

    folder: Path
    machine: dict[str, Any]
    clock: Clock
    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def check(self, model: str, what: str, value: float, passed: bool) -> None:
        entry = {"model": model, "check": what, "value": value, "passed": bool(passed)}
        print(json.dumps(entry, ensure_ascii=False), flush=True)
        self.checks.append(entry)

    def figure(
        self,
        model: str,
        what: str,
        *,
        kind: str | None = None,
        aim: Aim | None = None,
        **values: Any,
    ) -> None:
        """`ratio` or else `millpond` is what an aim for this kind of figure is about, or `aim`."""
        aim, entry = aim or aim_of(kind, model), {"model": model, "figure": what, **values}
        if aim is not None:
            value = values.get("ratio", values.get("millpond"))
            entry |= {"aim": str(aim), "reached": aim.is_reached(value)}
        print(json.dumps(entry, default=str, ensure_ascii=False), flush=True)
        self.figures.append(entry)

    def attempt(
        self, what: str, work: Callable[[], Result], *, needs_s: float = 0, limit_s: float = 60
    ) -> Result | None:
        """What `work` gives; None, and an entry here, where it fails or there is no time for it."""
        if self.clock.left < max(1.0, needs_s):
            self.left_out.append(f"{what}: {max(0.0, self.clock.left):.0f} s were left")
            self.write()
            return None
        since, result = time.perf_counter(), None
        try:
            with self.clock.limit(limit_s):
                result = work()
        except (Exception, OutOfTime) as error:
            traceback.print_exc()
            self.errors.append(f"{what}: {type(error).__name__}: {error}"[:500])
        print(f"[{what}: {time.perf_counter() - since:.1f} s; {self.clock!r}]", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.write()
        return result

    def write(self) -> None:
        names = ("machine", "checks", "figures", "errors", "left_out")
        raw = {name: getattr(self, name) for name in names}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gpu.json").write_text(json.dumps(raw, indent=1, default=str) + "\n")
        (self.folder / "gpu.md").write_text(self.markdown())

    def markdown(self) -> str:
        """Tables of figures and checks, and what went wrong or was left out."""
        lines = ["# GPU results", "", *(f"- {k}: {v}" for k, v in self.machine.items()), ""]
        missed = [f"{f['model']}: {f['figure']}" for f in self.figures if f.get("reached") is False]
        judged = sum("reached" in figure for figure in self.figures)
        lines.append(f"Of {judged} aims {judged - len(missed)} are reached.")
        lines += [*(f"Missed: {name}." for name in missed), ""]
        lines.append("| model | figure | Millpond | other | ratio | aim | | notes |")
        lines.append("|---|---|---:|---:|---:|---|---|---|")
        lines += map(_figure_row, self.figures)
        lines += ["", "| model | check | value | |", "|---|---|---:|---|"]
        for c in self.checks:
            passed = "passed" if c["passed"] else "**failed**"
            lines.append(f"| {c['model']} | {c['check']} | {c['value']:.6g} | {passed} |")
        lines += ["", *(f"- error: {error}" for error in self.errors)]
        lines += [f"- left out: {what}" for what in self.left_out]
        return "\n".join(lines) + "\n"


_COLUMNS = ("model", "figure", "millpond", "peer", "ratio", "aim", "reached")


def _figure_row(figure: dict[str, Any]) -> str:
    notes = (f"{k} {_short(v)}" for k, v in figure.items() if k not in _COLUMNS)
    judged = {True: "reached", False: "**missed**", None: ""}[figure.get("reached")]
    numbers = (_short(figure.get(key)) for key in ("millpond", "peer", "ratio"))
    cells = (figure["model"], figure["figure"], *numbers, figure.get("aim", ""), judged)
    return f"| {' | '.join(cells)} | {', '.join(notes)} |"


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def machine(device: str = "cuda") -> dict[str, Any]:
    """What the figures are of."""
    is_gpu = device.startswith("cuda")
    return {
        "gpu": torch.cuda.get_device_name() if is_gpu else "none: a rehearsal",
        "driver cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
        "millpond": millpond.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "bfloat16 TFLOP/s of a product of 8192 × 8192 matrices": (
            round(matrix_rate() / 1e12) if is_gpu else None
        ),
    }


def matrix_rate(size: int = 8192) -> float:
    """Operations a second of a bfloat16 product of square matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return 2 * size**3 / statistics.median(times[5:])
