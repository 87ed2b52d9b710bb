"""Prefixes and twins through the engine: every text ends once, with the vector of its own tokens.

The runner has a memory whose every slot knows the whole beginning it was filled with.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from fakes import PATIENCE_S, start_engine, vectors_for, words
from millpond import (
    Embeddings,
    Engine,
    EngineError,
    NonFiniteVector,
    OutOfMemory,
    QueueFull,
    TextFailed,
)
from millpond.scheduling.prefix_cache import PrefixCache
from slot_memory import RememberingRunner

FAULTS: dict[str, type[TextFailed]] = {
    "poison": TextFailed,
    "nan": NonFiniteVector,
    "huge": OutOfMemory,
}
SCRIPT = {"raises_on": ["poison"], "not_finite_on": ["nan"], "memory_error_on": ["huge"]}


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The faults below are meant; what is logged about them is tested elsewhere."""
    logger = logging.getLogger("millpond")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


def prefixes_of(engine: Engine) -> PrefixCache:
    found = engine._service.loop._scheduler.prefixes
    assert found is not None
    return found


def check_at_rest(engine: Engine) -> None:
    """Nothing is held, and nobody waits for anybody, once the engine is closed."""
    scheduler = engine._service.loop._scheduler
    prefixes_of(engine).check(idle=True)
    assert repr(scheduler._twins) == "Twins(in_flight=0, following=0)"
    assert [lane.waiting_tokens for lane in scheduler.lanes.values()] == [0, 0]
    assert [lane.ready_tokens for lane in scheduler.lanes.values()] == [0, 0]


# Under load.


def some_texts(chance: random.Random, most_words: int) -> list[str]:
    """Texts that begin alike, many of them the same, some with a fault somewhere."""
    texts = []
    for _ in range(chance.randrange(1, 9)):
        body = words(chance.choice([1, 2, 3, 5, 8, most_words]), chance.choice("ab"))
        if chance.random() < 0.4:
            body += f" n{chance.randrange(3)}"
        if chance.random() < 0.12:
            parts = body.split()
            parts.insert(chance.randrange(len(parts) + 1), chance.choice([*FAULTS]))
            body = " ".join(parts)
        texts.append(body)
    return texts


def check_text(result: Embeddings, row: int, text: str, prompt: str) -> None:
    fault = next((kind for word, kind in FAULTS.items() if word in text.split()), None)
    if fault is None:
        assert row not in result.errors, result.errors[row]
        assert np.array_equal(result.vectors[row], vectors_for([text], prompt)[0])
    else:
        assert isinstance(result.errors[row], tuple(FAULTS.values()))
        assert result.errors[row].index == row
        assert np.isnan(result.vectors[row]).all()


def check_call(future: Future[Embeddings], texts: list[str], prompt: str) -> None:
    try:
        result = future.result(PATIENCE_S)
    except (CancelledError, EngineError):
        return
    for row, text in enumerate(texts):
        check_text(result, row, text, prompt)


@pytest.mark.parametrize("seed", range(16))
def test_every_text_ends_once_with_its_own_vector_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    budget = chance.choice([8, 16, 32])
    runner = RememberingRunner(
        max_batch_tokens=budget,
        depth=chance.choice([1, 2]),
        workers=chance.choice([1, 1, 3]),
        query_workers=chance.choice([0, 1]),
        blocks=chance.choice([0, 8, 16, 64]),
        block_tokens=chance.choice([2, 3, 4]),
        min_batch_with_prefixes=chance.choice([0, 0, 6]),
        **SCRIPT,
    )
    engine = start_engine(runner, max_queue_tokens=chance.choice([60, 1_000_000]))
    ended: dict[Future[Embeddings], int] = {}
    calls: dict[Future[Embeddings], tuple[list[str], str]] = {}
    lock = threading.Lock()

    def count(future: Future[Embeddings]) -> None:
        with lock:
            ended[future] = ended.get(future, 0) + 1

    def caller(own: random.Random) -> None:
        for _ in range(30):
            texts, task = some_texts(own, 3 * budget), own.choice(["query", "document"])
            try:
                future = engine.submit(
                    texts,
                    task=task,
                    lane=own.choice(["interactive", "bulk"]),
                    wait=own.random() < 0.8,
                    timeout=own.choice([None, None, None, 0.002, 5.0]),
                )
            except (QueueFull, EngineError):
                continue
            with lock:
                calls[future] = (texts, {"query": "ask: "}.get(task, ""))
            future.add_done_callback(count)
            if own.random() < 0.15:
                future.cancel()

    callers = [
        threading.Thread(target=caller, args=(random.Random(100 * seed + n),), daemon=True)
        for n in range(4)
    ]
    for thread in callers:
        thread.start()
    if seed % 4 == 3:  # closed while they are at it
        runner.wait_for_batches(chance.randrange(1, 40))
        engine.close(drain=chance.random() < 0.5)
    for thread in callers:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a caller waits for ever"
    for future, (texts, prompt) in calls.items():
        check_call(future, texts, prompt)
    engine.close()
    assert runner.mistakes == []
    assert set(ended.values()) <= {1}
    assert ended.keys() == calls.keys()
    assert engine.health == "closed"
    check_at_rest(engine)
