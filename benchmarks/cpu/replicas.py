"""What a process of its own costs a model on a CPU, and what two of them bring.

    python -m benchmarks.cpu.replicas    # --channel: without a model, in a few seconds

Engines take turns within every round, on the same texts: one in this process, one whose model is in
a child (`replicas=1`), and one with two children. First the vectors are compared, bit for bit.

- passages: real text, in one call.
- a lone query: one after the other, the median.
- the channel: batches to a child whose runner computes nothing. What is counted is the processor
  time of both processes for each, which other processes disturb less than the time of a round trip.

Wanted of one child: at least 95 % of the passages, and no more than 0.3 ms a query.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millpond import Engine
from millpond.embeddings import OutputSpec
from millpond.model.info import RouteInfo
from millpond.runner.limits import Limits
from millpond.runner.remote.runner import RemoteRunner
from millpond.runner.remote.task import ChildTask, Loaded, Rank
from millpond.scheduler.batch import Batch, BatchShape, Segment
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.token_chunk import TokenChunk

from ..report.machine import machine
from .workloads import passages, queries

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DIMENSION = 384
LEAST_SHARE, MOST_QUERY_MS = 0.95, 0.3
ARMS: dict[str, dict[str, int]] = {
    "this process": {},
    "one child": {"replicas": 1},
    "two children": {"replicas": 2},
}
BATCHES = {"a query": (1, 12), "16 passages": (16, 64), "a GPU's batch": (470, 70)}
"""Texts, and tokens of each."""


class Idle:
    """A runner that computes nothing: vectors of the right size."""

    limits = Limits(max_batch_tokens=32_767, min_batch_tokens=64, query_workers=1)
    routes = (
        RouteInfo(
            name="default", execution="packed", reason="", dimension=DIMENSION, max_length=None
        ),
    )
    shapes = (BatchShape(),)
    device_name, dtype_name, prefix_cache_config = "cpu", "float32", None
    padded_tokens = 0  # it is its own handle

    def launch(self, batch: Batch) -> Idle:
        self.texts = batch.texts
        return self

    def collect(self, handle: Idle) -> npt.NDArray[np.float32]:
        return np.zeros((handle.texts, DIMENSION), dtype=np.float32)


def load_idle(*, rank: Rank) -> Loaded:
    """In the child."""
    return Loaded(Idle())  # type: ignore[arg-type]


def batch_of(texts: int, tokens: int) -> Batch:
    lengths = np.full(texts, tokens)
    chunk = TokenChunk.build(np.arange(texts), np.arange(texts * tokens, dtype=np.int32), lengths)
    priority = Priority.INTERACTIVE if texts == 1 else Priority.BULK
    output = OutputSpec(dimension=DIMENSION)
    request = Request(["text"] * texts, priority=priority, output=output)
    return Batch(0, (Segment(request, chunk, 0, texts),))


def processor_s(pid: int) -> float:
    """What all threads of a process have computed, as Linux counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def channel(count: int) -> list[dict[str, Any]]:
    """The cost of a batch beside its pass, in microseconds."""
    runner = RemoteRunner.load([ChildTask(loader="benchmarks.cpu.replicas:load_idle")])
    found = []
    for name, size in BATCHES.items():
        batch, seconds = batch_of(*size), []
        for _ in range(20):
            runner.collect(runner.launch(batch))
        here_s, there_s = time.process_time(), processor_s(runner.pids[0])
        for _ in range(count):
            started_s = time.perf_counter()
            runner.collect(runner.launch(batch))
            seconds.append(time.perf_counter() - started_s)
        here_s, there_s = time.process_time() - here_s, processor_s(runner.pids[0]) - there_s
        found.append(
            {
                "batch": name,
                "round_trip_us": statistics.median(seconds) * 1e6,
                "parent_processor_us": here_s / count * 1e6,
                "child_processor_us": there_s / count * 1e6,
            }
        )
    runner.close()
    return found


def compare_bits(engines: dict[str, Engine]) -> None:
    texts = passages(200)
    expected = engines["this process"].embed(texts)
    for name, engine in engines.items():
        assert np.array_equal(engine.embed(texts), expected), name


def one_round(engines: dict[str, Engine], number: int, options: argparse.Namespace) -> Any:
    """Passages a second and milliseconds of a query, of each."""
    order = sorted(engines, reverse=bool(number % 2))
    texts = passages(options.passages, 10 + number)
    found: dict[str, dict[str, float]] = {}
    for name in order:
        started_s = time.perf_counter()
        engines[name].embed(texts)
        found[name] = {"passages_per_s": len(texts) / (time.perf_counter() - started_s)}
    for name in order:
        times = []
        for text in queries(options.queries, 10 + number):
            started_s = time.perf_counter()
            engines[name].embed(text, task="query")
            times.append(time.perf_counter() - started_s)
        found[name]["query_ms"] = statistics.median(times) * 1e3
    return found


def table(rounds: list[dict[str, dict[str, float]]]) -> str:
    here = "this process"
    lines = ["| | passages/s | ÷ this process | query p50, ms | more |", "|---|---|---|---|---|"]
    for name in ARMS:
        rate = statistics.median(one[name]["passages_per_s"] for one in rounds)
        ratio = statistics.median(
            one[name]["passages_per_s"] / one[here]["passages_per_s"] for one in rounds
        )
        query = statistics.median(one[name]["query_ms"] for one in rounds)
        more = statistics.median(one[name]["query_ms"] - one[here]["query_ms"] for one in rounds)
        lines.append(f"| {name} | {rate:.0f} | {ratio:.3f} | {query:.2f} | {more:+.2f} |")
        if name == "one child":
            kept = ratio >= LEAST_SHARE and more <= MOST_QUERY_MS
    outcome = "reached" if kept else "MISSED"
    wanted = f"wanted of one child: {LEAST_SHARE} of the passages, {MOST_QUERY_MS} ms: {outcome}"
    return "\n".join([*lines, "", wanted])


def channel_table(found: list[dict[str, Any]]) -> str:
    names = ("round_trip_us", "parent_processor_us", "child_processor_us")
    rows = [[one["batch"], *(f"{one[name]:.0f}" for name in names)] for one in found]
    head = ["batch", "round trip, µs", "processor time of the parent, µs", "of the child, µs"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def contest(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                Engine(options.model, device="cpu", dtype=options.dtype, **more)
            )
            for name, more in ARMS.items()
        }
        compare_bits(engines)
        one_round(engines, -1, options)
        rounds = [one_round(engines, number, options) for number in range(options.rounds)]
        print(table(rounds), flush=True)
        return {"dtype": engines["this process"].info().dtype, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--channel", action="store_true", help="the channel alone")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a JSON file for the raw figures")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "channel": channel(options.batches)}
    print(json.dumps(found["machine"], indent=2))
    print(channel_table(found["channel"]), flush=True)
    if not options.channel:
        found |= contest(options)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
