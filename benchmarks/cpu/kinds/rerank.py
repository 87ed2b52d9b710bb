"""Pairs a second of a reranker on a CPU, beside sentence-transformers' CrossEncoder.

    python -m benchmarks.cpu.kinds.rerank
    python -m benchmarks.cpu.kinds.rerank --quick
    python -m benchmarks.cpu.kinds.rerank --figures beside

The model has the shape of ms-marco-MiniLM-L6-v2 and random weights; a query has 100 passages.
Scores are compared before anything is measured. CrossEncoder runs at its defaults, and in bfloat16
with the batch size that is best here (it sorts by length itself). Every round measures all in turn,
and the median of the rounds counts. `ceiling` says what the product of large matrices allows, with
16 callers. Needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from millpond import Engine
from millpond.errors import MillpondError

from ..matrix_rate import matrix_rate, operations

TOKENIZER = "sentence-transformers/all-MiniLM-L6-v2"
PASSAGES = 100  # of a query
CALLERS = 16
FEW_PAIRS = 50  # of the call that is timed beside ingestion
BULK_PAIRS = 2048  # of an ingestion's call, of which two are always in the queue
BATCH_SIZES = (8, 16, 32, 64, 100)
FLOAT32_TOLERANCE = 1e-5
BFLOAT16_TOLERANCE = 2e-2
IDLE_LOAD = 0.5
FIGURES = ("one", "callers", "ceiling", "beside")  # each takes some two minutes

Rank = Callable[[str, Sequence[str]], npt.NDArray[np.float32]]
"""The scores of the documents of a query."""


class Query(NamedTuple):
    text: str
    passages: list[str]


def save_model(folder: Path) -> Path:
    """A cross-encoder of MiniLM-L6's shape with random weights."""
    with Engine(TOKENIZER) as engine:
        tokenizer = AutoTokenizer.from_pretrained(engine.info().model.path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        initializer_range=0.05,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return folder


def make_queries(folder: Path, count: int) -> list[Query]:
    """Queries of some words, and passages of 20 to 200, mostly about 60, as MS MARCO's are."""
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    chance = np.random.default_rng(0)

    def text(length: int) -> str:
        ranks = chance.zipf(1.3, length) - 1
        return " ".join(words[rank % len(words)] for rank in ranks)

    def passage() -> str:
        return text(int(np.clip(chance.lognormal(np.log(60), 0.5), 20, 200)))

    return [
        Query(text(int(chance.integers(4, 12))), [passage() for _ in range(PASSAGES)])
        for _ in range(count)
    ]


def cross_encoder(folder: Path, *, dtype: str = "float32") -> CrossEncoder:
    options = {"dtype": getattr(torch, dtype)}
    return CrossEncoder(str(folder), device="cpu", model_kwargs=options, max_length=512)


def predicting(model: CrossEncoder, **options: Any) -> Rank:
    def rank(query: str, passages: Sequence[str]) -> npt.NDArray[np.float32]:
        pairs = [(query, passage) for passage in passages]
        found: npt.NDArray[np.float32] = model.predict(pairs, **options)
        return found

    return rank


def ranking(engine: Engine) -> Rank:
    def rank(query: str, passages: Sequence[str]) -> npt.NDArray[np.float32]:
        ranked = engine.rank(query, passages)
        scores = np.empty(len(passages), dtype=np.float32)
        scores[[one.index for one in ranked]] = [one.score for one in ranked]
        return scores

    return rank


def require_equal(folder: Path, queries: Sequence[Query], engine: Engine, half: Rank) -> None:
    """Raise `AssertionError` where the engine's scores are not those of CrossEncoder."""
    reference = predicting(cross_encoder(folder))
    expected = np.array([reference(*query) for query in queries])
    with Engine(folder, dtype="float32") as exact:
        found = np.array([ranking(exact)(*query) for query in queries])
    worst = float(np.abs(found - expected).max())
    print(f"float32 scores differ by at most {worst:.1e}; they span {np.ptp(expected):.2f}")
    assert worst <= FLOAT32_TOLERANCE, worst
    for name, rank in (("engine", ranking(engine)), ("CrossEncoder in bfloat16", half)):
        found = np.array([rank(*query) for query in queries])
        worst = float(np.abs(found - expected).max())
        print(f"  of {name}: {worst:.1e}")
        assert worst <= BFLOAT16_TOLERANCE, worst


def pairs_per_second(rank: Rank, queries: Sequence[Query], *, callers: int = 1) -> float:
    """With so many threads that call at a time."""
    started = time.perf_counter()
    if callers == 1:
        for query in queries:
            rank(*query)
    else:
        with ThreadPoolExecutor(callers) as threads:
            list(threads.map(lambda query: rank(*query), queries))
    return len(queries) * PASSAGES / (time.perf_counter() - started)


def best_batch_size(model: CrossEncoder, queries: Sequence[Query]) -> int:
    rates = {
        size: pairs_per_second(predicting(model, batch_size=size), queries) for size in BATCH_SIZES
    }
    return max(rates, key=lambda size: rates[size])


def latencies_s(rank: Rank, queries: Sequence[Query], calls: int) -> npt.NDArray[np.float64]:
    """Of calls of `FEW_PAIRS` pairs, one after the other."""
    found = []
    for number in range(calls):
        query = queries[number % len(queries)]
        started = time.perf_counter()
        rank(query.text, query.passages[:FEW_PAIRS])
        found.append(time.perf_counter() - started)
    return np.array(found)


class Ingestion:
    """Bulk pairs that are scored on the engine from another thread, inside the `with` block."""

    def __init__(self, engine: Engine, queries: Sequence[Query]) -> None:
        self._engine = engine
        every = [(query.text, passage) for query in queries for passage in query.passages]
        self._pairs = (every * (1 + BULK_PAIRS // len(every)))[:BULK_PAIRS]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.pairs = 0

    def _run(self) -> None:
        numbers = iter(range(10**9))

        def submit() -> Any:  # the pairs are new, or they would be computed once
            number = next(numbers)
            pairs = [(query, f"{passage} {number}") for query, passage in self._pairs]
            return self._engine.submit_score(pairs, priority="bulk")

        calls = [submit(), submit()]
        while not self._over.is_set():
            calls.pop(0).result()
            self.pairs += BULK_PAIRS
            calls.append(submit())
        for call in calls:
            call.cancel()

    def __enter__(self) -> Ingestion:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def report_throughput(
    contestants: dict[str, Rank], queries: Sequence[Query], rounds: int, *, callers: int
) -> None:
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, rank in contestants.items():
            rates[name].append(pairs_per_second(rank, queries, callers=callers))
    medians = {name: float(np.median(found)) for name, found in rates.items()}
    ours = {name: found for name, found in medians.items() if name.startswith("Millpond")}
    print(f"\n{callers} caller{'s' * (callers > 1)}, {PASSAGES} passages a query: pairs/s")
    for name, found in medians.items():
        spread = f"({min(rates[name]):,.0f}-{max(rates[name]):,.0f})"
        times = "  ".join(f"{one / found:.2f} × by {ours_name}" for ours_name, one in ours.items())
        print(f"  {name:<32} {found:8,.0f}  {spread:<12} {times}")


def report_latency(engine: Engine, queries: Sequence[Query], calls: int) -> None:
    rank = ranking(engine)
    idle = latencies_s(rank, queries, calls) * 1000
    started = time.perf_counter()
    with Ingestion(engine, queries) as ingestion:
        beside = latencies_s(rank, queries, calls) * 1000
    rate = ingestion.pairs / (time.perf_counter() - started)
    print(f"\na call of {FEW_PAIRS} pairs, {calls} of them: ms")
    for name, found in (("idle", idle), (f"beside ingestion at {rate:,.0f} pairs/s", beside)):
        median, high = np.percentile(found, [50, 99])
        print(f"  {name:<44} p50 {median:7.1f}   p99 {high:7.1f}")
    print(
        f"  p99 beside ingestion is {np.percentile(beside, 99) / np.percentile(idle, 99):.2f} times"
    )


def report_ceiling(engine: Engine, folder: Path, queries: Sequence[Query]) -> None:
    """Where the time of many callers goes, and what products at their full rate would give."""
    before, started = engine.stats(), time.perf_counter()
    rate = pairs_per_second(ranking(engine), queries, callers=CALLERS)
    seconds, after = time.perf_counter() - started, engine.stats()
    passes = (after.forward_s - before.forward_s) / seconds
    info = engine.info()
    dtype = "float32" if info.dtype == "float32" else "bfloat16"
    tokens = (after.tokens - before.tokens) / (after.texts - before.texts)
    of_pair = operations(folder, [round(tokens)]) - left_out(folder, round(tokens))
    most = matrix_rate(dtype) / of_pair
    print(f"\nMillpond {info.dtype}, {CALLERS} callers: {rate:,.0f} pairs/s of {tokens:.0f} tokens")
    side_by_side = max(1, round(passes))
    print(f"  in forward passes {passes / side_by_side:.1%} of the time, {side_by_side} at a time")
    print(
        f"  products alone, at the rate of large ones in {dtype}: {most:,.0f} pairs/s at the most"
    )


def left_out(folder: Path, tokens: int) -> float:
    """Operations of the last layer for tokens other than the first, which nobody reads."""
    config = BertConfig.from_pretrained(folder)
    after_attention = 2 * config.hidden_size**2 + 4 * config.hidden_size * config.intermediate_size
    attention = 4 * tokens * config.hidden_size
    return float((tokens - 1) * (after_attention + attention))


def loaded(folder: Path, stack: ExitStack) -> dict[str, Engine]:
    """An engine for each precision that this processor runs."""
    engines = {"Millpond": stack.enter_context(Engine(folder))}
    try:
        engines["Millpond, int8"] = stack.enter_context(Engine(folder, dtype="int8"))
    except MillpondError as error:
        print(f"int8 is left out: {error}")
    return engines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few queries and rounds")
    parser.add_argument("--rounds", type=int, help="instead of 3")
    parser.add_argument("--figures", nargs="*", default=FIGURES, choices=FIGURES)
    options = parser.parse_args(arguments)
    rounds, count, calls = (1, 3, 10) if options.quick else (3, CALLERS, 100)
    rounds = options.rounds or rounds
    load = os.getloadavg()[0]
    if load > IDLE_LOAD:
        print(f"The load is {load:.1f}: what follows says nothing about an idle machine.")
    with TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        queries = make_queries(model, count)
        half = cross_encoder(model, dtype="bfloat16")
        size = best_batch_size(half, queries[:3])
        best = predicting(half, batch_size=size)
        with ExitStack() as stack:
            engines = loaded(model, stack)
            engine = engines["Millpond"]
            require_equal(model, queries[:2], engine, best)
            contestants = {
                **{name: ranking(each) for name, each in engines.items()},
                "CrossEncoder at its defaults": predicting(cross_encoder(model)),
                f"CrossEncoder, bfloat16, {size} a batch": best,
            }
            for rank in contestants.values():
                rank(*queries[0])
            for figure, callers in (("one", 1), ("callers", CALLERS)):
                if figure in options.figures:
                    report_throughput(contestants, queries, rounds, callers=callers)
            if "ceiling" in options.figures:
                for each in engines.values():
                    report_ceiling(each, model, queries)
            if "beside" in options.figures:
                report_latency(engine, queries, calls)


if __name__ == "__main__":
    main()
