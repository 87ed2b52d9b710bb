"""What is timed, inside the process of the peer that is measured.

Only the standard library is used, and nothing is computed from the times here: they travel as they
were measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .peer import Embedder

Raw = dict[str, Any]
MOST_THREADS = 64  # for libraries that have no asynchronous calls
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "sentence-transformers",
    "millpond",
    "langchain-huggingface",
    "llama-index-embeddings-huggingface",
    "onnxruntime",
    "openvino",
    "optimum-onnx",
    "optimum-intel",
    "fastembed",
    "infinity-emb",
)


def ingest(embedder: Embedder, texts: list[str]) -> Raw:
    """One call with all texts."""
    before = embedder.tokens()
    seconds = _seconds(lambda: embedder.embed(texts))
    return {"seconds": seconds, "texts": len(texts), **_padding(before, embedder.tokens())}


def lone_query(embedder: Embedder, queries: list[str], pause_s: float = 0.0) -> Raw:
    """One query at a time, nothing else going on, with a pause before each."""
    times: list[float] = []
    for query in queries:
        if pause_s:
            time.sleep(pause_s)
        times.append(_seconds(lambda q=query: embedder.query(q)))
    return {"times": times}


def callers(embedder: Embedder, queries: list[str], count: int) -> Raw:
    """So many callers on one event loop, each asking again as soon as it is answered."""
    times: list[float] = []

    async def ask_in_turn(waiting: list[str]) -> None:
        while waiting:
            query = waiting.pop()
            started = time.perf_counter()
            await embedder.aquery(query)
            times.append(time.perf_counter() - started)

    async def ask_all() -> float:
        waiting = list(queries)
        started = time.perf_counter()
        await asyncio.gather(*(ask_in_turn(waiting) for _ in range(count)))
        return time.perf_counter() - started

    return {"seconds": _run(ask_all()), "times": times}


def during_ingestion(
    embedder: Embedder,
    queries: list[str],
    texts: list[str],
    *,
    interval_s: float,
    seconds: float,
    from_a_loop: bool = False,
) -> Raw:
    """Queries at a steady pace while another thread ingests the texts, again and again until
    `seconds` have passed; with `from_a_loop` by the asynchronous call, on its event loop."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    def ingest_once() -> None:
        if from_a_loop:
            asyncio.run(embedder.aembed(texts))
        else:
            embedder.embed(texts)

    def ingest_again() -> list[float]:
        calls = [_seconds(ingest_once)]
        while time.perf_counter() < end:
            calls.append(_seconds(ingest_once))
        return calls

    with ThreadPoolExecutor(1) as threads:
        ingestion = threads.submit(ingest_again)
        due = time.perf_counter()
        while not ingestion.done():
            query = queries[len(times) % len(queries)]
            times.append(_seconds(lambda q=query: embedder.query(q)))
            # A query that took longer than the interval moves the following ones.
            due = max(due + interval_s, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))
    return {"times": times, "calls": ingestion.result(), "texts": len(texts)}


def mixed(
    embedder: Embedder, queries: list[str], jobs: list[list[str]], arrivals: Sequence[Sequence[Any]]
) -> Raw:
    """Requests at moments set beforehand; their times count from those moments, not from when
    they could be sent."""
    times: dict[str, list[float]] = {"query": [], "job": []}

    async def answer(due: float, kind: str, number: int) -> None:
        if kind == "query":
            await embedder.aquery(queries[number % len(queries)])
        else:
            await embedder.aembed(jobs[number % len(jobs)])
        times[kind].append(time.perf_counter() - due)

    async def answer_all() -> float:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number, (after_s, kind) in enumerate(arrivals):
                due = started + after_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(answer(due, kind, number))
        return time.perf_counter() - started

    return {"seconds": _run(answer_all()), "queries": times["query"], "jobs": times["job"]}


def index(embedder: Embedder, texts: list[str]) -> Raw:
    """A vector index over all texts, built once."""
    return {"seconds": _seconds(lambda: embedder.index(texts)), "texts": len(texts)}


def memory() -> Raw:
    """The most memory this process has held, in bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kibibytes = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return {"peak_bytes": next((int(number) * 1024 for number in kibibytes), None)}


def versions() -> Raw:
    """Those of the libraries that matter here, as far as they are installed."""
    return {name: version(name) for name in LIBRARIES if _installed(name)}


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _run(coroutine: Any) -> Any:
    """In an event loop with threads enough for every caller."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(ThreadPoolExecutor(MOST_THREADS))
        return runner.run(coroutine)


def _padding(before: tuple[int, int] | None, after: tuple[int, int] | None) -> Raw:
    if before is None or after is None:
        return {"tokens": None, "computed_tokens": None}
    return {"tokens": after[0] - before[0], "computed_tokens": after[1] - before[1]}
