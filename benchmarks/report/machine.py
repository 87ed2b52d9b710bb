"""What the figures were measured on, and the folder that is named by it."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
NOT_A_NAME = re.compile(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return {
        "date": date.today().isoformat(),
        "processor": next(names, platform.processor() or "unknown"),
        "cores": os.cpu_count(),
        "extensions": [flag for flag in ("avx2", "avx512_bf16", "amx_bf16") if flag in flags],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def default_folder() -> Path:
    """Named by the day and the machine."""
    facts = machine()
    processor = NOT_A_NAME.sub(" ", facts["processor"].lower())
    words = f"{facts['date']} {processor} {facts['cores']} cores"
    return RESULTS / "-".join(re.findall(r"[a-z0-9.]+", words))
