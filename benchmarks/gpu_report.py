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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
import transformers

import millpond


@dataclass
class Report:
    """What was found so far, and where it is written."""

    folder: Path
    machine: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def check(self, model: str, what: str, value: float, passed: bool) -> None:
        entry = {"model": model, "check": what, "value": value, "passed": bool(passed)}
        print(entry, flush=True)
        self.checks.append(entry)

    def figure(self, model: str, what: str, **values: Any) -> None:
        entry = {"model": model, "figure": what, **values}
        print(entry, flush=True)
        self.figures.append(entry)

    @contextmanager
    def attempt(self, what: str):
        """Go on after a failure, and report it."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.errors.append(f"{what}: {type(error).__name__}: {error}"[:500])
        print(f"[{what}: {time.perf_counter() - started:.1f} s]", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        self.write()

    def write(self) -> None:
        raw = {key: getattr(self, key) for key in ("machine", "checks", "figures", "errors")}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gpu.json").write_text(json.dumps(raw, indent=1) + "\n")
        (self.folder / "gpu.md").write_text(self.markdown())

    def markdown(self) -> str:
        """Two tables, and what went wrong."""
        lines = ["# GPU results", "", *(f"- {k}: {v}" for k, v in self.machine.items())]
        lines += ["", "| model | check | value | |", "|---|---|---:|---|"]
        for c in self.checks:
            lines.append(
                f"| {c['model']} | {c['check']} | {c['value']:.6g} "
                f"| {'passed' if c['passed'] else '**failed**'} |"
            )
        lines += ["", "| model | figure | Millpond | sentence-transformers | ratio | notes |"]
        lines.append("|---|---|---:|---:|---:|---|")
        for f in self.figures:
            rest = {k: v for k, v in f.items() if k not in _COLUMNS}
            notes = ", ".join(f"{k} {_short(v)}" for k, v in rest.items())
            cells = (f.get("millpond"), f.get("peer"), f.get("ratio"))
            lines.append(
                f"| {f['model']} | {f['figure']} | {' | '.join(map(_short, cells))} | {notes} |"
            )
        lines += ["", *(f"- error: {error}" for error in self.errors)]
        return "\n".join(lines) + "\n"


_COLUMNS = ("model", "figure", "millpond", "peer", "ratio")


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """What the figures are of."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
        "millpond": millpond.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "bfloat16 TFLOP/s of a product of 8192 × 8192 matrices": round(matrix_rate() / 1e12),
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
