"""A `rank` call of fifty pairs on an idle engine, and beside an ingestion of pairs on the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from millpond import Engine

from ...cpu.kinds.rerank import FEW_PAIRS, Ingestion, Query, latencies_s, ranking
from ..models.shapes import Texts
from ..report import Report

WARM_CALLS = 60  # so that the sizes of such calls are captured
WARM_BULKS = 3
EXPLAINED_CALLS = 40
BULK_QUERIES = 42  # with as many passages as an ingestion has pairs
ALONE_S = 2.0


@dataclass
class RankBeside:
    """The figures of one engine; every query and passage is new."""

    report: Report
    name: str
    engine: Engine
    texts: Texts
    calls: int
    seed: int = 10_000

    def measure(self) -> None:
        """Idle calls, the ingestion alone, and then both at a time."""
        rank = ranking(self.engine)
        for _ in range(WARM_BULKS):
            pairs = [(one.text, text) for one in self._queries(self.calls // 4) for text in one[1]]
            self.engine.submit_score(pairs, priority="bulk").result()
        latencies_s(rank, self._queries(self._few(WARM_CALLS)), self._few(WARM_CALLS))
        idle = 1000 * latencies_s(rank, self._queries(self.calls), self.calls)
        queries, explained = self._queries(self.calls), self._queries(self._few(EXPLAINED_CALLS))
        with Ingestion(self.engine, self._queries(BULK_QUERIES)):
            self._wait_for_a_pass()
            alone = self._pairs_per_s(lambda: time.sleep(self._few(100) / 100 * ALONE_S))
            beside: npt.NDArray[np.float64] = np.empty(0)

            def calls() -> None:
                nonlocal beside
                beside = 1000 * latencies_s(rank, queries, self.calls)

            kept = self._pairs_per_s(calls) - FEW_PAIRS * self.calls / (beside.sum() / 1000)
            timings = [self._timings(query) for query in explained]
        self._report(idle, beside, alone, kept)
        self._explain(timings)

    def _report(
        self,
        idle: npt.NDArray[np.float64],
        beside: npt.NDArray[np.float64],
        alone: float,
        kept: float,
    ) -> None:
        (idle_p50, idle_p99), (p50, p99) = (np.percentile(x, (50, 99)) for x in (idle, beside))
        own = FEW_PAIRS * self.calls / (beside.sum() / 1000)
        self.report.figure(
            self.name,
            f"a rank call of {FEW_PAIRS} pairs beside bulk, p99, ms",
            kind="rank beside bulk",
            millpond=float(p99),
            ratio=float(p99 / idle_p99),
            p50=float(p50),
            worst=float(beside.max()),
            idle_p50=float(idle_p50),
            idle_p99=float(idle_p99),
            idle_worst=float(idle.max()),
            calls=self.calls,
            bulk_alone_pairs_per_s=alone,
            bulk_beside_pairs_per_s=kept,
            bulk_kept=kept / alone,
            all_pairs_kept=(kept + own) / alone,
        )

    def _explain(self, timings: Sequence[npt.NDArray[np.float64]]) -> None:
        """Where the time of a call beside ingestion goes: all calls, and the slowest of them."""
        columns = np.stack(timings)[np.argsort([each[0] for each in timings])]
        for which, rows in (("median", columns), ("slowest three", columns[-3:])):
            total, queue, tokenize, forward = (float(x) for x in np.median(rows, axis=0))
            self.report.figure(
                self.name,
                f"of calls beside bulk, {which}: ms in all",
                millpond=total,
                until_first_pass=queue,
                tokenize=tokenize,
                passes=forward,
            )

    def _timings(self, query: Query) -> npt.NDArray[np.float64]:
        """Milliseconds of a call: in all, until its first pass, tokenising, and its passes."""
        since = time.perf_counter()
        pairs = [(query.text, passage) for passage in query.passages]
        found = self.engine.submit_score(pairs).result().timings
        total = time.perf_counter() - since
        return 1000 * np.array([total, found.queue_s, found.tokenize_s, found.forward_s])

    def _pairs_per_s(self, work: Any) -> float:
        """All pairs that the engine is done with while `work` runs, a second of it."""
        before, since = self.engine.stats().texts, time.perf_counter()
        work()
        return (self.engine.stats().texts - before) / (time.perf_counter() - since)

    def _wait_for_a_pass(self) -> None:
        """Until the ingestion has brought something, so that it is under way."""
        before = self.engine.stats().texts
        while self.engine.stats().texts == before:
            time.sleep(0.005)

    def _few(self, count: int) -> int:
        """Fewer in a rehearsal with fewer calls."""
        return max(3, min(count, self.calls))

    def _queries(self, count: int) -> list[Query]:
        self.seed += 2
        passages = self.texts.passages(count * FEW_PAIRS, seed=self.seed)
        return [
            Query(query, passages[i * FEW_PAIRS : (i + 1) * FEW_PAIRS])
            for i, query in enumerate(self.texts.queries(count, seed=self.seed + 1))
        ]
