"""What is measured of one engine on a GPU, and the bars it is held to.

A figure that draws texts draws new ones in every round. Seconds are of calls, from the first until
the last vector is there.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from millpond import CallProgress, Engine

from ..checks import check_same_bits, least_cosine
from ..models.shapes import Shape, Texts
from ..report import Aim, Report, matrix_rate
from .callers import Asked, on_a_loop
from .kernel_trace import traced

FIRST_QUERIES = 100
IDLE_QUERIES = 400
PACED_PER_S = 100  # queries beside ingestion that come whatever became of those before
BESIDE_S = 3.0
CALLERS = {64: 100, 256: 30}  # and the queries of each, in a round
CALLER_ROUNDS = 3
KERNELS_SHOWN = 14
# About what an H100 does, in tokens a second: a round takes about a second.
SPEEDS = {"MiniLM-L6": 3_000_000, "bge-base": 2_200_000, "bge-large": 700_000}
SPEEDS_OTHERS = 450_000
GPU_ALONE = "it takes a GPU"


@dataclass(frozen=True)
class Bars:
    """The figures that a model is to reach; None where it has no bar."""

    passages: float | None
    matrix: float | None
    beside_p99_ms: float
    callers: dict[int, float]
    callers_p99_ms: float
    fp8: float | None


EIGHT = {64: 6000.0, 256: 8000.0}
BARS = {
    "MiniLM-L6": Bars(3.0e6, None, 6, EIGHT, 25, None),
    "bge-base": Bars(2.5e6, 0.55, 7, EIGHT, 25, 1.2),
    "bge-large": Bars(750e3, 0.58, 10, EIGHT, 30, 1.4),
    "XLM-R-large": Bars(750e3, 0.58, 10, EIGHT, 30, 1.4),
    "Qwen3-0.6B": Bars(470e3, 0.53, 12, {64: 5000.0}, 35, 1.4),
}


class Round(NamedTuple):
    """One ingestion."""

    tokens: int
    seconds: float

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Work:
    """Texts for one model, never the same twice."""

    words: Sequence[str]
    shape: Shape
    model: str
    share: float = 1.0
    """Of the amount of work; less in a rehearsal."""
    seeds: Iterator[int] = field(default_factory=partial(itertools.count, 1000))

    @property
    def texts(self) -> Texts:
        return Texts(self.words, words_per_token=0.65)

    def queries(self, count: int) -> list[str]:
        return self.texts.queries(count, next(self.seeds))

    def draw(self, what: str, seconds: float = 1.0) -> list[str]:
        """What takes about that many seconds."""
        tokens = self.share * seconds * SPEEDS.get(self.model, SPEEDS_OTHERS)
        if what == "passages":
            return self.texts.passages(max(64, int(tokens / 80)), next(self.seeds))
        count = max(32, int(tokens / min(350, 0.8 * self.shape.max_length)))
        return self.texts.chunks(count, longest=self.shape.max_length, seed=next(self.seeds))


@dataclass
class Measured:
    """One model's figures, from the first query after its load on."""

    report: Report
    name: str
    engine: Engine
    load: Callable[..., Engine]
    work: Work
    rounds: int
    idle_p50_ms: float = 0.0
    passages_per_s: float = 0.0
    """Tokens a second of passages, alone."""

    @property
    def bars(self) -> Bars:
        return BARS[self.name]

    def cold(self) -> None:
        """The first queries after a load, and after them the first second of an ingestion."""
        seconds = [timed(self.engine, query) for query in self.work.queries(FIRST_QUERIES)]
        self._say(
            f"first {FIRST_QUERIES} queries p99, ms",
            p99_ms(seconds),
            Aim(10, at_most=True),
            worst=1000 * max(seconds),
            p50=1000 * statistics.median(seconds),
        )
        texts = self.work.draw("passages", 2.0)
        first = self._share_by(texts, 1.0)
        tokens = sum(map(len, texts))  # in characters, as long as the true number is not known
        steady = [self._first_second_beside(1.0) for _ in range(3)]
        in_first = first * tokens
        self._say(
            "first second of ingestion over steady",
            in_first / statistics.median(steady),
            Aim(0.8),
            characters_in_first=in_first,
        )

    def _share_by(self, texts: list[str], seconds: float) -> float:
        """The share of an ingestion that was done by then."""
        since, done = time.perf_counter(), [0.0]
        later = [0.0]

        def note(progress: CallProgress) -> None:
            of = done if time.perf_counter() - since <= seconds else later
            of[0] += progress.share

        self.engine.embed(texts, progress=note)
        return done[0] if later[0] else done[0] * seconds / (time.perf_counter() - since)

    def _first_second_beside(self, seconds: float) -> float:
        """Characters that an ingestion brings in its first second once all is warm."""
        texts = self.work.draw("passages", 2.0)
        return self._share_by(texts, seconds) * sum(map(len, texts))

    def _ingest(self, engine: Engine, texts: list[str]) -> Round:
        since = time.perf_counter()
        found = engine.submit(texts).result()
        return Round(int(found.token_counts.sum()), time.perf_counter() - since)

    def ingestion(self, what: str) -> None:
        """Tokens a second once warm, and of chunks the share of the matrix rate."""
        drawn = [self.work.draw(what) for _ in range(self.rounds + 1)]
        rounds = [self._ingest(self.engine, texts) for texts in drawn][1:]
        speed = statistics.median(one.speed for one in rounds)
        bar = self.bars.passages
        if what == "passages":
            self.passages_per_s = speed
        of_all = "passages" if self.name == "MiniLM-L6" else what  # its bar is of passages alone
        aim = Aim(bar) if bar is not None and of_all == what else None
        speeds = [round(one.speed / 1e6, 3) for one in rounds]
        self._say(f"{what}, tokens/s", speed, aim, millions=speeds, tokens=rounds[0].tokens)
        if what == "chunks" and self._on_gpu:
            rate = matrix_rate()
            share = speed * 2 * weights_per_token(self.work.shape) / rate
            aim = None if self.bars.matrix is None else Aim(self.bars.matrix)
            self._say("chunks: share of the matrix rate, weights alone", share, aim, rate=rate)

    def busy(self) -> None:
        """The share of the time that kernels run, from the second batch on."""
        if not self._on_gpu:
            raise RuntimeError(GPU_ALONE)
        for what in ("passages", "chunks"):
            texts = self.work.draw(what, 0.5)
            plain = self._ingest(self.engine, self.work.draw(what, 0.5))
            found, seen = traced(partial(self._ingest, self.engine, texts))
            self._say(
                f"GPU busy, {what}",
                seen.share,
                Aim(0.95),
                gaps=seen.gaps,
                gaps_ms=1000 * seen.gaps_s,
                wall_ms=1000 * seen.wall_s,
                traced_tokens_per_s=found.speed,
                plain_tokens_per_s=plain.speed,
            )
            shown = sorted(seen.by_name.items(), key=lambda item: -item[1][1])[:KERNELS_SHOWN]
            for name, (count, spent) in shown:
                share = spent / seen.busy_s if seen.busy_s else 0
                print(f"    {share:6.1%} {count:6} × {1e6 * spent / count:8.1f} µs {name[:110]}")

    def lone_query(self) -> None:
        seconds = [
            timed(self.engine, query) for query in self.work.queries(self._few(IDLE_QUERIES))
        ]
        self.idle_p50_ms = 1000 * statistics.median(seconds)
        self._say("lone query p50, ms", self.idle_p50_ms, p99=p99_ms(seconds))

    def beside(self) -> None:
        """Queries beside ingestion: one after the other, and at a rate of their own."""
        ways = {"one after the other": self._one_by_one, f"{PACED_PER_S} a second": self._paced}
        for way, ask in ways.items():
            queries = self.work.queries(20_000)
            job = self.engine.submit(self.work.draw("passages", BESIDE_S))
            since = time.perf_counter()
            ended: list[float] = []
            job.add_done_callback(lambda _, ended=ended: ended.append(time.perf_counter()))
            seconds = ask(queries, job)
            found = job.result()
            speed = int(found.token_counts.sum()) / (ended[0] - since)
            p50, p99 = 1000 * statistics.median(seconds), p99_ms(seconds)
            idle = self.idle_p50_ms or float("nan")
            count = {"queries": len(seconds)}
            note = f"query beside ingestion, {way}"
            self._say(f"{note}: p99, ms", p99, Aim(self.bars.beside_p99_ms, at_most=True), **count)
            self._say(f"{note}: p99 over idle p50", p99 / idle, Aim(4, at_most=True))
            self._say(f"{note}: p50 over idle p50", p50 / idle, Aim(2, at_most=True), p50_ms=p50)
            self._say(f"{note}: ingestion kept", speed / (self.passages_per_s or 1), Aim(0.85))

    def _one_by_one(self, queries: Sequence[str], job: Any) -> list[float]:
        found: list[float] = []
        for query in queries:
            found.append(timed(self.engine, query))
            if job.done():
                break
        return found

    def _paced(self, queries: Sequence[str], job: Any) -> list[float]:
        """Each from the moment it was to be asked, so what waits for the one before it counts."""
        found: list[float] = []
        asked: list[Any] = []
        due = time.perf_counter()
        for query in queries:
            due += 1 / PACED_PER_S
            threading.Event().wait(max(0.0, due - time.perf_counter()))
            if job.done():
                break

            def note(_: Any, due: float = due) -> None:
                found.append(time.perf_counter() - due)

            call = self.engine.submit(query, task="query")
            call.add_done_callback(note)
            asked.append(call)
        for call in asked:
            call.result()
        return found or [float("nan")]

    def callers(self) -> None:
        """Callers at a time on one event loop, each asking again when it is answered."""
        ask = partial(self.engine.aembed, task="query")
        for callers, each in CALLERS.items():
            count = callers * max(2, self._few(each))
            on_a_loop(self.work.queries(count // 2), ask, callers=callers)
            rounds: list[Asked] = []
            processor_s = 0.0
            for _ in range(CALLER_ROUNDS):
                queries, since = self.work.queries(count), time.process_time()
                rounds.append(on_a_loop(queries, ask, callers=callers))
                processor_s += time.process_time() - since
            bar = self.bars.callers.get(callers)
            self._say(
                f"{callers} callers, queries/s",
                statistics.median(one.per_second for one in rounds),
                None if bar is None else Aim(bar),
                processor_us=1e6 * processor_s / (CALLER_ROUNDS * count),
                rounds=[round(one.per_second) for one in rounds],
            )
            p99 = p99_ms([s for one in rounds for s in one.latencies_s])
            aim = Aim(self.bars.callers_p99_ms, at_most=True) if callers == 64 else None
            self._say(f"{callers} callers, p99 ms", p99, aim)

    def float8(self) -> None:
        """Passages in float8 over those in half precision, in turns, and their cosine."""
        if self.bars.fp8 is None or not self._on_gpu:
            return
        with self.load(dtype="fp8") as other:
            ratio, rounds = self._in_turns(other)
            self._say("fp8 over auto, passages", ratio, Aim(self.bars.fp8), millions=rounds)
            texts = self.work.texts.passages(200, next(self.work.seeds))
            cosine = least_cosine(other.embed(texts), self.engine.embed(texts))
            self._say("fp8: least cosine to auto, random weights", cosine)

    def batch_invariant(self) -> None:
        """How much longer passages take with `batch_invariant=True`, and whether they are."""
        with self.load(batch_invariant=True) as other:
            ratio, rounds = self._in_turns(other)
            aim = Aim(1.25, at_most=True)
            self._say("batch_invariant=True, time on passages", 1 / ratio, aim, millions=rounds)
            few = [*self.work.queries(6), *self.work.draw("passages", 0.0)[:10], "mill", ""]
            check_same_bits(self.report, self.name, other, few)

    def _in_turns(self, other: Engine) -> tuple[float, list[list[float]]]:
        """How many times as fast another engine takes passages: the median of the rounds' own."""
        ratios, speeds = [], []
        for number in range(self.rounds + 2):
            texts = self.work.draw("passages", 0.5)
            theirs, ours = self._ingest(other, texts), self._ingest(self.engine, texts)
            if number >= 2:
                ratios.append(theirs.speed / ours.speed)
                speeds.append([round(theirs.speed / 1e6, 3), round(ours.speed / 1e6, 3)])
        return statistics.median(ratios), speeds

    @property
    def _on_gpu(self) -> bool:
        return self.engine.info().device.startswith("cuda")

    def _few(self, count: int) -> int:
        return max(10, int(count * min(1.0, 10 * self.work.share)))

    def _say(self, what: str, value: float, aim: Aim | None = None, **more: Any) -> None:
        self.report.figure(self.name, what, aim=aim, millpond=float(value), **more)


def timed(engine: Engine, query: str) -> float:
    since = time.perf_counter()
    engine.embed(query, task="query")
    return time.perf_counter() - since


def p99_ms(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 99) * 1000)


def weights_per_token(shape: Shape) -> int:
    """Numbers in the products' weights, each used once for every token."""
    c = shape.config
    width, inner, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    heads = c["num_attention_heads"]
    size = c.get("head_dim", width // heads)
    kv = c.get("num_key_value_heads", heads) * size
    projections = width * (2 * heads * size + 2 * kv)
    return int(layers * (projections + width * inner * (3 if shape.is_decoder else 2)))
