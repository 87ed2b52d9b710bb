"""Millpond beside its peers, in turn in one run, on real text: `make bench`.

Every peer's vectors are compared with the reference's before anything is timed. Raw runs, tables
and plots are written to a folder of `results/`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..peers import environments, model, peer
from ..peers.workers import end_when_told
from ..report import plots, tables
from ..report.machine import default_folder, machine
from . import workloads
from .matrix_rate import operations
from .measure import Peers, Record, Run, measure, peers_at_once, shifts
from .plan import FULL, QUICK, texts

STARTED = time.perf_counter()
MODEL = environments.FOLDER / "model"


def results(run: Run, peers: Peers, lists: Record) -> Record:
    """Everything that is kept, as it is written to `results.json`."""
    plain = (*run.sizes.texts, *(f"length {length}" for length in run.sizes.lengths))
    counts = {name: workloads.token_counts(lists[name]) for name in plain}
    return {
        "machine": machine(),
        "sizes": asdict(run.sizes),
        "minutes": (time.perf_counter() - STARTED) / 60,
        "load_average_after_each_round": run.load_average,
        "peers": run.described(peers),
        "failures": run.failures,
        "texts": {
            name: {
                "texts": len(found),
                "tokens": sum(found),
                "median": sorted(found)[len(found) // 2],
                "operations": operations(MODEL, found),
            }
            for name, found in counts.items()
        },
        "runs": run.records,
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small texts, few rounds")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--only", nargs="+", metavar="PART", help="peers whose names contain it")
    parser.add_argument("--at-once", type=int, help="peers loaded at a time; as memory allows")
    parser.add_argument("--output", type=Path, help="folder for the results")
    return parser.parse_args()


def chosen_peers(parts: Sequence[str] | None) -> Peers:
    """All of them, or the reference and those whose names contain one of the parts."""
    peers = {name: found for name, found in peer.read_all().items() if found[0].in_full_run}
    if not parts:
        return peers
    wanted = [name for name in peers if any(part in name for part in parts)]
    return {name: peers[name] for name in dict.fromkeys([next(iter(peers)), *wanted])}


def write(found: Record, folder: Path) -> None:
    """Raw runs, tables and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found) + "\n")
    tables.write(found, folder)
    plots.write(found, folder)


def main() -> None:
    end_when_told()
    chosen = options()
    sizes = QUICK if chosen.quick else FULL
    sizes = sizes if chosen.rounds is None else sizes.with_rounds(chosen.rounds)
    peers, at_once = chosen_peers(chosen.only), chosen.at_once or peers_at_once()
    lists = texts(sizes, sizes.rounds * len(shifts(peers, at_once)))
    folder = chosen.output or default_folder()
    model.prepare(MODEL)
    with tempfile.TemporaryDirectory() as temporary:
        texts_file = Path(temporary, "texts.json")
        texts_file.write_text(json.dumps(lists))
        run = Run(sizes, MODEL, texts_file)
        measure(
            run,
            peers,
            lambda: write(results(run, peers, lists), folder),
            at_once=at_once,
        )
    print(f"\n{(folder / 'results.md').read_text()}\nwritten to {folder}")


if __name__ == "__main__":
    main()
