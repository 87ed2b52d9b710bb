"""The benchmarks are imported from the root of the repository."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if (ROOT / "benchmarks").exists():
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
else:
    collect_ignore_glob = ["test_*.py"]  # an unpacked source archive leaves the folder out
