"""A lone query after pauses of several lengths, of Millpond and its peers in turn.

    python -m benchmarks.cpu.lone_query [--rounds N] [--only PART ...] [--busy N]

People ask now and then, and a processor that had nothing to do meanwhile sleeps, forgets what was
in its caches, and wakes late: a query after a pause takes another time than one that follows at
once. `--busy` keeps so many processes computing beside it. Texts are new in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..peers import environments, model
from ..peers.workers import Worker, end_when_told
from ..report.machine import machine
from . import workloads
from .run import chosen_peers

MODEL = environments.FOLDER / "model"
QUERIES = {0.0: 200, 0.01: 60, 0.05: 40, 0.3: 12}
"""How many are asked in a round after each pause, in seconds."""
FIRST = 5  # of these, not counted: the process was stopped while others were measured


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many other processes that compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def lists(rounds: int) -> dict[str, list[str]]:
    """Queries by round and pause, each of them new."""
    counts = [(number, pause_s) for number in range(rounds) for pause_s in QUERIES]
    return {
        f"{number} {pause_s}": workloads.queries(QUERIES[pause_s] + FIRST, seed=1_000 + place)
        for place, (number, pause_s) in enumerate(counts)
    }


def percentiles(times: list[float]) -> str:
    """The median and the 99th percentile, in milliseconds."""
    return (
        f"{statistics.median(times) * 1e3:.1f} / {statistics.quantiles(times, n=100)[98] * 1e3:.1f}"
    )


def main() -> None:
    end_when_told()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="PART", help="as of run.py")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes beside it")
    chosen = parser.parse_args()
    model.prepare(MODEL)
    times: dict[str, dict[float, list[float]]] = {}
    with ExitStack() as stack:
        texts = Path(stack.enter_context(tempfile.TemporaryDirectory()), "texts.json")
        texts.write_text(json.dumps(lists(chosen.rounds)))
        workers = {
            name: stack.enter_context(Worker(entry, path, MODEL, texts))
            for name, (entry, path) in chosen_peers(chosen.only).items()
        }
        stack.enter_context(busy(chosen.busy))
        for number in range(chosen.rounds):
            for name, worker in workers.items():
                for pause_s in QUERIES:
                    request = {"queries": f"{number} {pause_s}", "pause_s": pause_s}
                    found = worker.ask("lone_query", **request)["times"][FIRST:]
                    times.setdefault(name, {}).setdefault(pause_s, []).extend(found)
    print(json.dumps(machine()))
    print(f"load {os.getloadavg()[0]:.1f}, {chosen.busy} busy; p50 / p99 in ms after a pause of")
    print(f"{'':28}" + "".join(f"{pause_s * 1e3:>13.0f} ms" for pause_s in QUERIES))
    for name, measured in times.items():
        print(f"{name:28}" + "".join(f"{percentiles(found):>16}" for found in measured.values()))


if __name__ == "__main__":
    main()
