"""The figures of one model on a GPU, Millpond's and its peer's, from runs that took turns."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import Shape, Texts
from gpu_report import Report
from sentence_transformers import SentenceTransformer

from millpond import Engine

QUERIES = 200
CALLERS = 64
CALLS = 16  # queries of each caller
PEER_CALLS = 2  # of a peer, which takes its time
PEER_BATCHES = (32, 128, 512)
TOKENS = {"MiniLM-L6": 1_000_000, "bge-base": 500_000, "XLM-R-large": 300_000}
TOKENS_OTHERS = 150_000
MATRIX_TOKENS = 500_000


def _seconds(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _elapsed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _alternated(*works: Callable[[], Any], rounds: int) -> list[list[float]]:
    """Seconds of each work in each round, taking turns."""
    times = [[_seconds(work) for work in works] for _ in range(rounds)]
    return [list(column) for column in zip(*times, strict=True)]


@dataclass
class Contest:
    """One model in both engines, in the same half precision."""

    report: Report
    name: str
    shape: Shape
    engine: Engine
    peer: SentenceTransformer
    texts: Texts
    rounds: int

    @property
    def tokens(self) -> int:
        return TOKENS.get(self.name, TOKENS_OTHERS)

    def count_tokens(self, texts: Sequence[str]) -> int:
        return int(self.engine.submit(list(texts)).result().token_counts.sum())

    def encode(self, texts: list[str], batch_size: int) -> np.ndarray:
        return self.peer.encode(texts, batch_size=batch_size, show_progress_bar=False)

    def ingestion(self, what: str, draw: Callable[[int], list[str]], mean: int) -> None:
        texts = draw(max(256, self.tokens // mean))
        tokens = self.count_tokens(texts)  # warms Millpond up, too
        sample = texts[: max(64, len(texts) // 4)]
        speeds = {}
        for size in PEER_BATCHES:
            try:
                self.encode(sample[:size], size)
                speeds[size] = len(sample) / _seconds(lambda size=size: self.encode(sample, size))
            except torch.OutOfMemoryError:
                print(f"{self.name}, {what}: the peer has no memory for batches of {size}")
                torch.cuda.empty_cache()
        best = max(speeds, key=speeds.__getitem__)
        ours, theirs = _alternated(
            lambda: self.engine.embed(texts), lambda: self.encode(texts, best), rounds=self.rounds
        )
        self.report.figure(
            self.name,
            f"{what}, tokens/s",
            millpond=tokens / statistics.median(ours),
            peer=tokens / statistics.median(theirs),
            ratio=statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
            texts=len(texts),
            tokens=tokens,
            peer_batch=best,
        )

    def lone_query(self) -> None:
        queries = self.texts.queries(QUERIES + 20)
        for query in queries[:20]:
            self.engine.embed(query)
            self.peer.encode(query)
        ours, theirs = [], []
        for query in queries[20:]:
            ours.append(_seconds(lambda query=query: self.engine.embed(query)))
            theirs.append(_seconds(lambda query=query: self.peer.encode(query)))
        self.report.figure(
            self.name,
            "lone query p50, ms",
            millpond=statistics.median(ours) * 1000,
            peer=statistics.median(theirs) * 1000,
            ratio=statistics.median(ours) / statistics.median(theirs),
            p99=float(np.percentile(ours, 99) * 1000),
            peer_p99=float(np.percentile(theirs, 99) * 1000),
        )

    def concurrent_queries(self) -> None:
        queries = self.texts.queries(CALLERS * CALLS, seed=7)
        few = queries[: CALLERS * PEER_CALLS]
        _from_threads(queries, self.engine.embed)  # both are warm from here on
        _from_threads(few[:CALLERS], lambda query: self.peer.encode([query]))
        ours = _from_threads(queries, self.engine.embed)
        theirs = _from_threads(few, lambda query: self.peer.encode([query]))
        self.report.figure(
            self.name,
            f"{CALLERS} concurrent callers, queries/s",
            millpond=ours[0],
            peer=theirs[0],
            ratio=ours[0] / theirs[0],
            p99_ms=ours[1],
            peer_p99_ms=theirs[1],
        )

    def queries_during_ingestion(self) -> None:
        """A query at a time beside an ingestion job, after the same without one."""
        queries = self.texts.queries(QUERIES, seed=9)
        idle = [_seconds(lambda query=query: self.engine.embed(query)) for query in queries]
        texts = self.texts.passages(self.tokens // 16, seed=10)
        job = self.engine.submit(texts)
        busy = []
        for query in itertools.cycle(queries):
            busy.append(_elapsed(lambda query=query: self.engine.embed(query)))
            if job.done():
                break
        self.report.figure(
            self.name,
            "query beside ingestion p99, ms",
            millpond=float(np.percentile(busy, 99) * 1000),
            ratio_to_idle=float(np.percentile(busy, 99) / np.percentile(idle, 99)),
            p50=statistics.median(busy) * 1000,
            idle_p50=statistics.median(idle) * 1000,
            ingestion_tokens_per_s=int(job.result().token_counts.sum())
            / job.result().timings.total_s,
        )

    def matrix_share(self, rate: float) -> None:
        """Share of the measured matrix rate, by the operations texts of 512 tokens must take."""
        length = min(512, self.shape.max_length)
        share, speed = _matrix_share(self.engine, self.shape, rate, self.rounds)
        what = f"share of the matrix rate at {length} tokens"
        self.report.figure(self.name, what, millpond=share, tokens_per_s=speed)


def _matrix_share(engine: Engine, shape: Shape, rate: float, rounds: int) -> tuple[float, float]:
    """The share, and tokens a second. The first two rounds only warm up."""
    length, rng = min(512, shape.max_length), np.random.default_rng(5)
    ids = list(rng.integers(100, 5000, (MATRIX_TOKENS // length, length), dtype=np.int32))
    seconds = [_seconds(lambda: engine.embed(ids)) for _ in range(rounds + 2)][2:]
    speed = length * len(ids) / statistics.median(seconds)
    return speed * _operations_per_token(shape, length) / rate, speed


def _operations_per_token(shape: Shape, length: int) -> float:
    """Floating-point operations of the products of one token in a text of `length`."""
    c = shape.config
    width, inner, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    heads = c["num_attention_heads"]
    size = c.get("head_dim", width // heads)
    kv = c.get("num_key_value_heads", heads) * size
    projections = 2 * width * (2 * heads * size + 2 * kv)
    mlp = 2 * width * inner * (3 if shape.is_decoder else 2)
    seen = length / 2 if shape.is_decoder else length
    return float(layers * (projections + mlp + 4 * seen * heads * size))


def _from_threads(queries: list[str], embed: Callable[[str], Any]) -> tuple[float, float]:
    """Queries a second, and the p99 in milliseconds, from `CALLERS` threads."""
    latencies: list[float] = []
    barrier = threading.Barrier(CALLERS + 1)

    def call(mine: list[str]) -> None:
        barrier.wait()
        for query in mine:
            since = time.perf_counter()
            embed(query)
            latencies.append(time.perf_counter() - since)

    shares = [queries[i::CALLERS] for i in range(CALLERS)]
    threads = [threading.Thread(target=call, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return len(queries) / seconds, float(np.percentile(latencies, 99) * 1000)


def deterministic_cost(contest: Contest, folder: Path) -> None:
    """How much longer ingestion takes with the same bits in any company."""
    texts = contest.texts.passages(contest.tokens // 80)
    with Engine(folder, device="cuda", deterministic=True) as fixed:
        fixed.embed(texts)
        free, same = _alternated(
            lambda: contest.engine.embed(texts),
            lambda: fixed.embed(texts),
            rounds=contest.rounds,
        )
    ratio = statistics.median(b / a for a, b in zip(free, same, strict=True))
    contest.report.figure(contest.name, "deterministic=True, time on passages", ratio=ratio)


def compiled_speed(
    contest: Contest, folder: Path, rate: float, also: Callable[[Engine], None] | None = None
) -> None:
    """What `compile=True` changes: the start, ingestion, and the share of the matrix rate."""
    texts = contest.texts.passages(contest.tokens // 80)
    started = time.perf_counter()
    with Engine(folder, device="cuda", compile=True) as engine:
        start_s = time.perf_counter() - started
        contest.report.check(contest.name, "runs compiled", 1.0, engine.info().routes[0].compiled)
        found, expected = engine.embed(texts[:200]), contest.engine.embed(texts[:200])
        cosine = float((found * expected).sum(1).min())
        contest.report.check(contest.name, "compiled: cosine to plain", cosine, cosine > 0.999)
        for _ in range(2):
            engine.embed(texts), contest.engine.embed(texts)
        plain, compiled = _alternated(
            lambda: contest.engine.embed(texts), lambda: engine.embed(texts), rounds=contest.rounds
        )
        share, speed = _matrix_share(engine, contest.shape, rate, contest.rounds)
        if also is not None:
            also(engine)
    contest.report.figure(
        contest.name,
        "compile=True, time on passages",
        ratio=statistics.median(b / a for a, b in zip(plain, compiled, strict=True)),
        matrix_share=share,
        tokens_per_s_at_that=speed,
        start_s=start_s,
    )


def profile(engine: Engine, contest: Contest, folder: Path) -> None:
    """Where the time of ingestion goes, by kernel and by call."""
    texts = contest.texts.passages(contest.tokens // 160)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        seconds = _seconds(lambda: engine.embed(texts))
    found = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
    found.sort(key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in found) / 1e6
    lines = [f"{engine!r}, {contest.name}: {seconds:.3f} s, {busy:.3f} s of them on the device"]
    for event in found[:30]:
        milliseconds = event.self_device_time_total / 1e3
        lines.append(f"{milliseconds:9.2f} ms {event.count:6} × {event.key[:140]}")
    with (folder / "profile.txt").open("a") as out:
        out.write("\n".join([*lines, "", ""]))
