"""What a small call costs in Python: calls of functions of ours, on all threads."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fakes import FakeRunner, start_engine

import millpond
from millpond import Engine

SOURCE = str(Path(millpond.__file__).parent)
TEXTS = ["one short text", "another text"]
MOST_CALLS, MOST_MODULES = 250, 32
QUERIES, MOST_CALLS_A_QUERY = 64, 135


@contextmanager
def counted() -> Iterator[tuple[Counter[str], threading.Event]]:
    """Counts by module, while the event is set, in this thread and those that are started inside.

    Counted is each "call" event of the profiler in a file of ours: functions, generators and
    comprehensions whenever they are entered, and no code of numpy, torch or transformers.
    """
    calls: Counter[str] = Counter()
    counts = threading.Event()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(SOURCE) and counts.is_set():
            calls[file] += 1

    before, before_of_threads = sys.getprofile(), threading.getprofile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield calls, counts
    finally:
        sys.setprofile(before)
        threading.setprofile(before_of_threads)


def idle(engine: Engine) -> None:
    """Wait until the threads have come to rest."""
    core = engine._instance.core
    while True:
        with core.lock:
            if all(worker.idle and not worker.woken for worker in core.pool.workers):
                return


def test_a_list_of_two_texts_costs_few_calls(bare_bert: Path) -> None:
    with counted() as (calls, counts), Engine(str(bare_bert), device="cpu") as engine:
        for _ in range(3):
            engine.embed(TEXTS)
        rounds = []
        for _ in range(3):  # a thread that comes late looks once more
            calls.clear()
            idle(engine)
            counts.set()
            engine.embed(TEXTS)
            idle(engine)
            counts.clear()
            rounds.append(Counter(calls))
        calls = min(rounds, key=Counter.total)
    assert 100 < sum(calls.values()) <= MOST_CALLS, calls.most_common()
    assert len(calls) <= MOST_MODULES


def test_a_query_among_many_of_an_event_loop_costs_few_calls() -> None:
    runner = FakeRunner(max_batch_tokens=4096)
    queries = [f"query {number}" for number in range(QUERIES)]

    async def ask_all(engine: Engine) -> None:
        await asyncio.gather(*(engine.aembed(query, task="query") for query in queries))

    with counted() as (calls, counts), start_engine(runner) as engine:
        rounds = []
        for _ in range(4):  # the first finds out what later ones know
            calls.clear()
            idle(engine)
            counts.set()
            asyncio.run(ask_all(engine))
            idle(engine)
            counts.clear()
            rounds.append(Counter(calls))
    calls = min(rounds, key=Counter.total)
    assert 50 * QUERIES < calls.total() <= MOST_CALLS_A_QUERY * QUERIES, calls.most_common()
