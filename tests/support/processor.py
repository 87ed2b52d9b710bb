"""Which processor this is: bits and rounding depend on it, so a log of the tests says so."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Of what torch's libraries choose their kernels by, on x86 and on ARM.
EXTENSIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "sve", "bf16", "i8mm"),
)


def own_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """This machine's processor: its name, how many there are, and what kernels may use of it."""
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    pairs = (line.partition(":") for line in lines)
    facts = {name.strip().lower(): value.strip() for name, _, value in pairs}
    parts = [facts.get("model name") or platform.processor() or platform.machine()]
    if "cpu family" in facts:
        parts.append(f"family {facts['cpu family']} model {facts['model']}")
    flags = facts.get("flags", facts.get("features", "")).split()
    parts.append(f"{os.cpu_count()} processors")
    return ", ".join([*parts, *(name for name in EXTENSIONS if name in flags)])
