"""One run of the benchmark: load, compare, warm up, and every round of every figure.

It knows peers by their processes only, and what to ask them from `plan.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from ..peers import start_up
from ..peers.agreement import Disagrees, compare
from ..peers.peer import FIRST, Peer
from ..peers.workers import Worker, WorkerFailed
from . import workloads
from .matrix_rate import matrix_rate
from .plan import Sizes, Step, mixed_steps, steps

MEMORY_OF_A_PEER = 5 * 2**29  # bytes; one takes 6.5 GiB, most a third of this
BEHIND = 2  # times the length of the arrivals; who takes longer is not asked to do more
Peers = dict[str, tuple[Peer, Path]]
Record = dict[str, Any]


@dataclass
class Run:
    """What was found so far. Everything in it is written by this module alone."""

    sizes: Sizes
    model: Path
    """The folder that `model.py` prepared."""
    texts_file: Path
    records: list[Record] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    agreements: dict[str, Record] = field(default_factory=dict)
    versions: dict[str, Record] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    load_average: list[float] = field(default_factory=list)

    def ask(self, name: str, step: Step, round_number: int) -> Record:
        """One figure of one peer, kept with where it belongs."""
        answer = self.workers[name].ask(step.figure, **step.request)
        record = {
            "peer": name,
            "figure": step.figure,
            "setting": step.setting,
            "round": round_number,
            **answer,
        }
        self.records.append(record)
        return record

    def described(self, peers: Peers) -> Record:
        """Who the peers are, and how far their vectors are from the reference's."""
        return {
            name: {
                "about": entry.about,
                "precision": entry.precision,
                "environment": entry.environment,
                "versions": self.versions.get(name),
                "agreement": self.agreements.get(name),
            }
            for name, (entry, _) in peers.items()
        }

    def drop(self, name: str, error: Exception) -> None:
        """List a peer with its error and go on without it."""
        self.failures[name] = str(error)
        print(f"  {name}: {error}", flush=True)
        if worker := self.workers.pop(name, None):
            worker.close()

    def close(self) -> None:
        """End all processes."""
        while self.workers:
            self.workers.popitem()[1].close()


def peers_at_once() -> int:
    """How many fit in the machine's memory."""
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEMORY_OF_A_PEER)


def shifts(peers: Peers, at_once: int) -> list[Peers]:
    """Who is loaded together: the reference and Millpond with as many of the others as fit, in the
    fewest shifts of about equal size."""
    always = {name: found for name, found in peers.items() if name in FIRST}
    others = [name for name in peers if name not in always]
    count = max(1, ceil(len(others) / max(1, at_once - len(always))))
    size = max(1, ceil(len(others) / count))
    parts = [others[start : start + size] for start in range(0, len(others), size)] or [[]]
    return [always | {name: peers[name] for name in part} for part in parts]


def load(run: Run, peers: Peers) -> None:
    """A process for every peer that can be loaded and whose vectors are the reference's.

    Raises `WorkerFailed` when the reference, the first of them, cannot.
    """
    reference = None
    for name, (entry, path) in peers.items():
        print(f"loading {name}", flush=True)
        try:
            run.workers[name] = Worker(entry, path, run.model, run.texts_file)
            answer = run.workers[name].ask("vectors", texts="agreement")
            if "error" in answer:
                raise WorkerFailed(answer["error"])
            reference = reference or answer["vectors"]
            agreement = compare(answer["vectors"], reference, entry.precision)
            run.agreements[name] = asdict(agreement)
            run.versions[name] = run.workers[name].ask("versions")
        except (WorkerFailed, Disagrees) as error:
            run.drop(name, error)
            if reference is None:
                raise


def warm_up(run: Run) -> None:
    """The same for every peer: each kind of call once."""
    for name, worker in list(run.workers.items()):
        try:
            worker.ask("ingest", texts="passages")
            worker.ask("callers", queries="lone", count=8)
        except WorkerFailed as error:
            run.drop(name, error)


def unit_rate(run: Run) -> float:
    """Requests a second of the mixed workload that keep the reference busy, one at a time."""
    reference = run.workers[next(iter(run.workers))]
    times = reference.ask("lone_query", queries="lone")["times"]
    ingestion = reference.ask("ingest", texts="passages")
    job = workloads.PASSAGES_IN_A_JOB * ingestion["seconds"] / ingestion["texts"]
    query = sum(times) / len(times)
    share = workloads.SHARE_OF_QUERIES
    return float(1 / (share * query + (1 - share) * job))


def in_turn(
    run: Run, step: Step, round_number: int, *, without: Container[str] = ()
) -> Iterator[tuple[str, Record]]:
    """One figure of every peer; their order is reversed every other round."""
    names = list(run.workers)
    for name in names if round_number % 2 == 0 else reversed(names):
        if name in without:
            continue
        try:
            yield name, run.ask(name, step, round_number)
        except WorkerFailed as error:
            run.drop(name, error)


def measure_round(run: Run, round_number: int, unit: float) -> None:
    """Every figure of every peer, the peers in turn; the mixed workload in the first rounds only,
    because it takes the longest."""
    for precision in ("float32", "bfloat16"):
        rate = {"peer": None, "figure": "matrix_rate", "setting": precision, "round": round_number}
        run.records.append(rate | {"per_second": matrix_rate(precision)})
    behind: set[str] = set()
    is_first = round_number % run.sizes.rounds < run.sizes.mixed_rounds
    mixed = mixed_steps(run.sizes, unit, round_number) if is_first else ()
    for step in (*steps(run.sizes, round_number), *mixed):
        left_out = behind if step.figure == "mixed" else ()
        for name, record in in_turn(run, step, round_number, without=left_out):
            too_slow = record.get("seconds", 0) > BEHIND * run.sizes.mixed_s
            if step.figure == "mixed" and ("error" in record or too_slow):
                behind.add(name)
    run.load_average.append(os.getloadavg()[0])


def measure(run: Run, peers: Peers, keep: Callable[[], None], *, at_once: int) -> None:
    """Load, compare, warm up, and every round, with `at_once` peers loaded at most; then start-up,
    with nothing else loaded.

    Rounds are numbered through all shifts, so that those who were measured together share numbers.
    `keep` is called after each part, so that a run that is cut off leaves what it has.
    """
    unit = None
    for shift, present in enumerate(shifts(peers, at_once)):
        with ExitStack() as stack:
            stack.callback(run.close)
            load(run, present)
            warm_up(run)
            unit = unit or unit_rate(run)
            for number in range(shift * run.sizes.rounds, (shift + 1) * run.sizes.rounds):
                print(f"round {number + 1}", flush=True)
                measure_round(run, number, unit)
                for name in list(run.workers):
                    run.ask(name, Step("memory"), number)
                keep()
    survivors = {name: found for name, found in peers.items() if name not in run.failures}
    print("starting up", flush=True)
    run.records += start_up.measure(survivors, run.model, run.texts_file, run.sizes.start_rounds)
    keep()
