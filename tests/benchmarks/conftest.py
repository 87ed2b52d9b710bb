"""The benchmark is a folder of programs, not a package: its modules are found by their names."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if BENCHMARKS.exists():
    sys.path[:0] = [str(BENCHMARKS), str(Path(__file__).parent)]
else:
    collect_ignore_glob = ["test_*.py"]  # an unpacked source archive leaves the folder out
