"""The figures of one model on a GPU, Millpond's and its peer's, from runs that took turns."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from millpond import Engine

from ..checks import check_same_bits
from ..models.shapes import Shape, Texts
from ..report import Report, matrix_rate
from .callers import CALLERS, Asked, as_the_incumbents_ask, in_threads, incumbents, on_a_loop

QUERIES = 150
WARM_QUERIES = 20
CALLS = 8  # queries of each caller, and one of a peer's, which takes its time
CALLER_ROUNDS = 3
PEER_BATCHES = (32, 128, 512)
DEFAULT_BATCH = 32  # sentence-transformers'
FEWEST_ROUNDS = 3
# So many that a peer's round takes a second or two.
TOKENS = {"MiniLM-L6": 600_000, "bge-base": 400_000, "bge-large": 200_000}
TOKENS_OTHERS = 120_000
MATRIX_TOKENS = {"Qwen3-0.6B": 200_000}
MATRIX_TOKENS_OTHERS = 500_000


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any]) -> float:
    synchronize()
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def alternated(
    *works: Callable[[], Any], rounds: int, allowed_s: float = 20.0
) -> list[list[float]]:
    """Seconds of each work in each round, taking turns; fewer rounds where they take long."""
    times: list[list[float]] = []
    since = time.perf_counter()
    while len(times) < rounds:
        times.append([seconds_of(work) for work in works])
        if len(times) >= FEWEST_ROUNDS and time.perf_counter() - since > allowed_s:
            break
    return [list(column) for column in zip(*times, strict=True)]


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of throughputs, from seconds: the median of the rounds' own."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


@dataclass
class Contest:
    """One model in both engines, in the same half precision."""

    report: Report
    name: str
    shape: Shape
    folder: Path
    engine: Engine
    peer: SentenceTransformer
    texts: Texts
    rounds: int
    device: str = "cuda"
    share: float = 1.0
    """Of the amount of work; less in a rehearsal."""
    best_batches: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return int(self.share * TOKENS.get(self.name, TOKENS_OTHERS))

    @property
    def peer_name(self) -> str:
        return f"sentence-transformers, {str(self.shape.dtype).removeprefix('torch.')}"

    def draw(self, what: str) -> list[str]:
        """The texts of a workload."""
        if what == "passages":
            return self.texts.passages(max(64, self.tokens // 80))
        return self.texts.chunks(max(32, self.tokens // 400), longest=self.shape.max_length)

    def prepare(self, texts: Sequence[str]) -> int:
        """How many tokens they have. Millpond is warm from here on."""
        results = [self.engine.submit(list(texts)).result() for _ in range(3)]
        return int(results[0].token_counts.sum())

    def encode(self, texts: Sequence[str], batch: int, peer: Any = None) -> np.ndarray:
        return (peer or self.peer).encode(list(texts), batch_size=batch, show_progress_bar=False)

    def ingestion(self, what: str) -> None:
        texts = self.draw(what)
        tokens = self.prepare(texts)
        best = self._best_batch(what, texts)
        ours, theirs = alternated(
            lambda: self.engine.embed(texts),
            lambda: self.encode(texts, best),
            rounds=self.rounds,
        )
        self.report.figure(
            self.name,
            f"{what}, tokens/s",
            kind=what,
            millpond=tokens / statistics.median(ours),
            peer=tokens / statistics.median(theirs),
            ratio=ratio_of(ours, theirs),
            other=f"{self.peer_name}, batches of {best}",
            rounds=len(ours),
            texts=len(texts),
            tokens=tokens,
        )

    def _best_batch(self, what: str, texts: list[str]) -> int:
        speeds = {}
        for size in PEER_BATCHES:
            sample = texts[: max(size, len(texts) // 5)]
            try:
                self.encode(sample[:size], size)
                speeds[size] = len(sample) / seconds_of(partial(self.encode, sample, size))
            except torch.OutOfMemoryError:
                print(f"{self.name}, {what}: the peer has no memory for batches of {size}")
                torch.cuda.empty_cache()
        print(f"{self.name}, {what}: the peer's texts/s by batch size: {speeds}", flush=True)
        self.best_batches[what] = max(speeds, key=speeds.__getitem__)
        return self.best_batches[what]

    def matrix_share(self) -> None:
        """Share of the measured matrix rate, by the operations texts of 512 tokens must take."""
        rate, length = matrix_rate(), min(512, self.shape.max_length)
        share, speed = matrix_share(self, self.engine, rate)
        what = f"share of the matrix rate at {length} tokens"
        self.report.figure(
            self.name,
            what,
            kind="matrix",
            millpond=share,
            tokens_per_s=speed,
            matrix_tflops=rate / 1e12,
        )

    def lone_query(self) -> None:
        queries = self.texts.queries(int(self.share * QUERIES) + 2 * WARM_QUERIES)
        for query in queries[:WARM_QUERIES]:
            self.engine.embed(query)
            self.peer.encode(query, show_progress_bar=False)
        ours, theirs = [], []
        for query in queries[WARM_QUERIES:]:
            ours.append(seconds_of(partial(self.engine.embed, query)))
            theirs.append(seconds_of(partial(self.peer.encode, query, show_progress_bar=False)))
        self.report.figure(
            self.name,
            "lone query p50, ms",
            kind="query",
            millpond=statistics.median(ours) * 1000,
            peer=statistics.median(theirs) * 1000,
            ratio=statistics.median(ours) / statistics.median(theirs),
            other=self.peer_name,
            p99=float(np.percentile(ours, 99) * 1000),
            peer_p99=float(np.percentile(theirs, 99) * 1000),
        )

    def callers(self) -> None:
        """64 callers at a time, through the incumbents' adapters and through Millpond's call."""
        found, errors = incumbents(str(self.folder), self.device, self.shape.dtype)
        self.report.errors += [f"{self.name}: {error}" for error in errors]
        found = found or {"as the incumbents' adapters ask": as_the_incumbents_ask(self.peer)}

        async def ours(query: str) -> list[float]:
            vector = await self.engine.aembed(query, task="query")
            listed: list[float] = vector.tolist()
            return listed

        queries = self.texts.queries(CALLERS * CALLS, seed=7)
        on_a_loop(queries, ours)
        mine: list[Asked] = []
        theirs: dict[str, list[Asked]] = {name: [] for name in found}
        for number in range(CALLER_ROUNDS):
            mine.append(on_a_loop(queries, ours))
            few = queries[number * CALLERS : (number + 1) * CALLERS]
            for name, ask in found.items():
                theirs[name].append(on_a_loop(few, ask))
        threads = in_threads(queries, partial(self.engine.embed, task="query"))
        for name, seen in theirs.items():
            self.report.figure(
                self.name,
                f"{CALLERS} callers, queries/s",
                kind="callers",
                millpond=_speed(mine),
                peer=_speed(seen),
                ratio=statistics.median(
                    a.per_second / b.per_second for a, b in zip(mine, seen, strict=True)
                ),
                other=f"{name}, {self.peer_name}",
                rounds=len(mine),
                p99_ms=_p99_ms(mine),
                peer_p99_ms=_p99_ms(seen),
                from_threads=threads.per_second,
                from_threads_p99_ms=_p99_ms([threads]),
            )

    def batch_invariant(self) -> None:
        """How much longer ingestion takes with `batch_invariant=True`, and whether it is."""
        texts = self.draw("passages")
        self.prepare(texts)
        with Engine(self.folder, device=self.device, batch_invariant=True) as fixed:
            for _ in range(2):
                fixed.embed(texts)
            free, same = alternated(
                lambda: self.engine.embed(texts), lambda: fixed.embed(texts), rounds=self.rounds
            )
            self.report.figure(
                self.name,
                "batch_invariant=True, time on passages",
                kind="batch_invariant",
                ratio=ratio_of(free, same),
                rounds=len(same),
            )
            check_same_bits(self.report, self.name, fixed, self.few_texts())

    def few_texts(self) -> list[str]:
        """Of every length, for checks."""
        texts = self.texts
        few = [*texts.queries(6), *texts.passages(8), *texts.chunks(2, longest=0), "mill", ""]
        return [*few, texts.of_length(3000)] if self.shape.max_length > 3000 else few

    def against(self, peer: SentenceTransformer, what: str, *, label: str, batch: int) -> None:
        """Ingestion beside another setting of the peer, with less work; aimed at nothing."""
        texts = self.draw(what)
        texts = texts[: max(64, len(texts) // 3)]
        tokens = self.prepare(texts)
        self.encode(texts[: 2 * batch], batch, peer)
        ours, theirs = alternated(
            lambda: self.engine.embed(texts),
            lambda: self.encode(texts, batch, peer),
            rounds=FEWEST_ROUNDS,
        )
        self.report.figure(
            self.name,
            f"{what}, tokens/s",
            millpond=tokens / statistics.median(ours),
            peer=tokens / statistics.median(theirs),
            ratio=ratio_of(ours, theirs),
            other=f"sentence-transformers {label}, batches of {batch}",
            rounds=len(ours),
            tokens=tokens,
        )

    def beside(self) -> None:
        """A query at a time beside an ingestion job, after the same without one."""
        queries = self.texts.queries(int(self.share * QUERIES) + 10, seed=9)
        idle = [seconds_of(partial(self.engine.embed, query)) for query in queries]
        texts = self.texts.passages(self.tokens // 20, seed=10)
        job = self.engine.submit(texts)
        busy = []
        for query in itertools.cycle(queries):
            since = time.perf_counter()
            self.engine.embed(query)
            busy.append(time.perf_counter() - since)
            if job.done():
                break
        result = job.result()
        self.report.figure(
            self.name,
            "query beside ingestion p99, ms",
            millpond=float(np.percentile(busy, 99) * 1000),
            ratio_to_idle=float(np.percentile(busy, 99) / np.percentile(idle, 99)),
            p50=statistics.median(busy) * 1000,
            idle_p50=statistics.median(idle) * 1000,
            ingestion_tokens_per_s=int(result.token_counts.sum()) / result.timings.total_s,
        )

    def profile(self) -> None:
        """Where the time of ingestion goes, by kernel and by call."""
        texts = self.texts.passages(self.tokens // 160)
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            seconds = seconds_of(lambda: self.engine.embed(texts))
        found = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
        found.sort(key=lambda event: -event.self_device_time_total)
        busy = sum(event.self_device_time_total for event in found) / 1e6
        lines = [f"{self.engine!r}, {self.name}: {seconds:.3f} s, {busy:.3f} s on the device"]
        for event in found[:30]:
            milliseconds = event.self_device_time_total / 1e3
            lines.append(f"{milliseconds:9.2f} ms {event.count:6} × {event.key[:140]}")
        with (self.report.folder / "profile.txt").open("a") as out:
            out.write("\n".join([*lines, "", ""]))


def _speed(asked: Sequence[Asked]) -> float:
    return statistics.median(one.per_second for one in asked)


def _p99_ms(asked: Sequence[Asked]) -> float:
    return float(np.percentile([s for one in asked for s in one.latencies_s], 99) * 1000)


def matrix_share(contest: Contest, engine: Engine, rate: float) -> tuple[float, float]:
    """The share, and tokens a second. The first two rounds only warm up."""
    shape, rng = contest.shape, np.random.default_rng(5)
    length = min(512, shape.max_length)
    tokens = MATRIX_TOKENS.get(contest.name, MATRIX_TOKENS_OTHERS) * contest.share
    ids = list(rng.integers(100, 5000, (max(1, int(tokens) // length), length), dtype=np.int32))
    seconds = [seconds_of(lambda: engine.embed(ids)) for _ in range(contest.rounds + 2)][2:]
    speed = length * len(ids) / statistics.median(seconds)
    return speed * operations_per_token(shape, length) / rate, speed


def operations_per_token(shape: Shape, length: int) -> float:
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
