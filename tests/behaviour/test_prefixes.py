"""Prefixes and duplicates through the engine: every text ends once, with its own vector.

The runner has a memory whose every slot knows the whole beginning it was filled with.
"""

from __future__ import annotations

import random
import threading
import weakref
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from fakes import (
    PATIENCE_S,
    FakeRunner,
    FakeTicket,
    OutOfFakeMemory,
    held_engine,
    start_engine,
    vectors_for,
    words,
)
from faults import FAULTS, SCRIPT
from slot_memory import RememberingRunner

from millpond import (
    Embeddings,
    Engine,
    EngineError,
    QueueFull,
)
from millpond.engine.calls.base import INLINE_TEXTS
from millpond.scheduler.batch import Batch
from millpond.scheduler.prefix_cache import PrefixCache
from millpond.scheduler.request import Priority

pytestmark = pytest.mark.usefixtures("quiet_log")  # the faults are meant


def prefixes_of(engine: Engine) -> PrefixCache:
    (found,) = engine._instance.core.scheduler.caches
    return found


def check_at_rest(engine: Engine) -> None:
    """Nothing is held, and nobody waits for anybody, once the engine is closed."""
    scheduler = engine._instance.core.scheduler
    prefixes_of(engine).check(idle=True)
    assert repr(scheduler._in_flight_texts) == "InFlightTexts(in_flight=0, following=0)"
    assert [queue.waiting_tokens for queue in scheduler.queues.values()] == [0, 0]
    assert [queue.ready_tokens for queue in scheduler.queues.values()] == [0, 0]


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
        min_saved_tokens=chance.choice([0, 0, 6]),
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
                    priority=own.choice(["interactive", "bulk"]),
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


# Texts longer than a batch.


def long_text(tokens: int, name: str = "l") -> str:
    return " ".join(f"{name}{number}" for number in range(tokens))


def test_queries_run_between_the_parts_of_a_long_text() -> None:
    runner = RememberingRunner(max_batch_tokens=8, blocks=64)
    text = long_text(50)
    with held_engine(runner) as engine:
        future = engine.submit([text], priority="bulk")
        for number in range(5):
            runner.wait_for_batches(2 * number + 1)
            query = engine.submit(f"q{number}")
            runner.let(2)
            assert query.result(PATIENCE_S)
        runner.let()
        assert np.array_equal(future.result(PATIENCE_S).vectors, vectors_for([text]))
        stats = engine.stats()
    order = ["long" if text in batch else "query" for batch in runner.batches]
    assert order[:10] == ["long", "query"] * 5
    assert max(batch.tokens for batch in runner.batches) <= 8
    assert (stats.texts, stats.tokens, stats.cached_tokens) == (6, 55, 0)
    assert runner.mistakes == []


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
def test_texts_run_between_the_parts_of_a_long_one_of_their_priority(priority: str) -> None:
    """A long query would keep every other one waiting otherwise."""
    runner = RememberingRunner(max_batch_tokens=8, blocks=64)
    long = long_text(60)
    with held_engine(runner) as engine:
        future = engine.submit(long, priority=priority)
        runner.wait_for_batches(1)
        others = [engine.submit(f"q{number} a b", priority=priority) for number in range(6)]
        waiting = engine._instance.core.scheduler.queues[Priority(priority)]
        engine._instance.core.background.add(bool)  # so that it takes in what arrived
        while waiting.ready_tokens < 18:  # all six are tokenised and may go into a batch
            assert all(not other.done() for other in others)
        for number, other in enumerate(others):
            runner.let(1)
            runner.wait_for_batches(number + 2)
            if number >= 4:
                other.result(PATIENCE_S)
        assert [other.done() for other in others] == [True] * 6
        assert not future.done()
        runner.let()
        assert np.array_equal(future.result(PATIENCE_S).vectors[0], vectors_for([long])[0])
    assert max(batch.tokens for batch in runner.batches) <= 8
    assert runner.mistakes == []


class FullOnce(RememberingRunner):
    """A device without room for the first batch of several texts that uses prefixes."""

    was_full = False

    def launch(self, batch: Batch) -> FakeTicket:
        if batch.texts > 1 and batch.cached_tokens and not self.was_full:
            self.was_full = True
            raise OutOfFakeMemory("no room for what it reads")
        return super().launch(batch)


def test_a_batch_with_prefixes_that_does_not_fit_makes_the_next_ones_smaller() -> None:
    """By what it computed, and not by the tokens of its texts, which are many more."""
    runner = FullOnce(max_batch_tokens=40, blocks=100)
    # So few are tokenised by their caller, and are there together.
    texts = [f"{long_text(32)} t{number} u" for number in range(INLINE_TEXTS)]
    with start_engine(runner) as engine:
        engine.embed(long_text(36))
        assert np.array_equal(engine.embed(texts), vectors_for(texts))
        assert runner.was_full
        assert engine._instance.core.scheduler.max_batch_tokens < 30
    assert runner.mistakes == []


@pytest.mark.parametrize("word", [*FAULTS])
def test_a_fault_in_a_later_part_is_the_text_s_own(word: str) -> None:
    runner = RememberingRunner(max_batch_tokens=8, blocks=64, **SCRIPT)
    bad = f"{long_text(30)} {word} {long_text(9)}"
    texts = [bad, long_text(33), "short"]
    with start_engine(runner) as engine:
        result = engine.submit(texts).result(PATIENCE_S)
        assert {row: type(error) for row, error in result.errors.items()} == {0: FAULTS[word]}
        assert np.array_equal(result.vectors[1:], vectors_for(texts[1:]))
    assert runner.mistakes == []
    check_at_rest(engine)


@pytest.mark.parametrize("blocks", [0, 2, 5])
def test_a_pool_too_small_for_a_text_runs_the_rest_of_it_whole(blocks: int) -> None:
    runner = RememberingRunner(max_batch_tokens=8, blocks=blocks)
    texts = [long_text(50), long_text(40, "m"), "short"]
    with start_engine(runner) as engine:
        assert np.array_equal(engine.embed(texts), vectors_for(texts))
    assert runner.mistakes == []
    check_at_rest(engine)


@pytest.mark.parametrize("how", ["cancelled", "closed", "expired"])
def test_a_text_that_ends_between_its_parts_holds_no_blocks(how: str) -> None:
    runner = RememberingRunner(max_batch_tokens=8, blocks=64)
    with held_engine(runner) as engine:
        future = engine.submit([long_text(50)], timeout=1000)
        runner.let(1)
        runner.wait_for_batches(2)
        assert prefixes_of(engine).stats.blocks_in_use > 0
        core = engine._instance.core
        (request,) = core.pending.by_id.values()
        if how == "cancelled":
            future.cancel()
        elif how == "closed":
            core.close(drain=False, wait=False)
        else:
            with core.lock:
                core.scheduler._deadlines._heap = [(0.0, 0, weakref.ref(request))]
            core.background.add(bool)  # which makes it look at the clock
        runner.let()
        with pytest.raises((CancelledError, EngineError)):
            future.result(PATIENCE_S)
    assert len(runner.batches) <= 3
    check_at_rest(engine)


# How much is computed.


def results(futures: list[Future[Embeddings]]) -> list[Embeddings]:
    return [future.result(PATIENCE_S) for future in futures]


INSTRUCTION = " ".join(f"instruct{number}" for number in range(40)) + " "
PROMPTED: dict[str, Any] = {"spec": {"prompts": {"query": INSTRUCTION, "document": ""}}}
QUERIES = [" ".join(f"q{number}w{word}" for word in range(10)) for number in range(1000)]


@pytest.mark.parametrize("how", ["one by one", "in one call", "at once"])
def test_a_thousand_queries_compute_their_instruction_once(how: str) -> None:
    runner = RememberingRunner(max_batch_tokens=512, blocks=256, block_tokens=16)
    with start_engine(runner, **PROMPTED) as engine:
        first = engine.embed("the first of all", task="query")
        before = engine.stats()
        if how == "one by one":
            found = np.array([engine.embed(text, task="query") for text in QUERIES])
        elif how == "in one call":
            found = engine.embed(QUERIES, task="query")
        else:
            futures = [engine.submit(text, task="query") for text in QUERIES]
            found = np.concatenate([result.vectors for result in results(futures)])
        stats = engine.stats()
    assert np.array_equal(found, vectors_for(QUERIES, INSTRUCTION))
    assert np.array_equal(first, vectors_for(["the first of all"], INSTRUCTION)[0])
    assert stats.tokens - before.tokens == 1000 * 50
    computed = stats.tokens - stats.cached_tokens - (before.tokens - before.cached_tokens)
    assert computed == 1000 * 10, "the instruction is found to its last token"
    assert runner.mistakes == []


def test_without_a_prefix_cache_every_token_is_computed() -> None:
    with start_engine(FakeRunner(max_batch_tokens=512), **PROMPTED) as engine:
        engine.embed(QUERIES, task="query")
        assert (engine.stats().tokens, engine.stats().cached_tokens) == (1000 * 50, 0)


def test_a_saved_prompt_stays_through_a_flood_of_other_texts() -> None:
    runner = RememberingRunner(max_batch_tokens=256, blocks=64, block_tokens=4)
    flood = [long_text(24, f"f{number}x") for number in range(2000)]
    with start_engine(runner, **PROMPTED) as engine:
        engine.embed("one", task="query")
        other = "another prompt, not saved " + long_text(35, "o") + " "
        engine.embed("one", prompt=other)
        assert np.array_equal(engine.embed(flood), vectors_for(flood))
        assert prefixes_of(engine).stats.evictions > 1000
        for options, cached in (({"task": "query"}, 40), ({"prompt": other}, 0)):
            before = engine.stats()
            engine.embed("two", **options)
            assert engine.stats().cached_tokens - before.cached_tokens == cached
        assert prefixes_of(engine).stats.blocks_pinned == 10
    assert runner.mistakes == []


def test_texts_cut_at_the_start_pin_nothing_in_place_of_the_prompt() -> None:
    runner = RememberingRunner(max_batch_tokens=256, blocks=64, block_tokens=4, max_length=50)
    cut = [long_text(60, f"c{number}x") for number in range(100)]
    with start_engine(runner, **PROMPTED) as engine:
        engine.embed(cut, task="query", truncate="start")
        assert prefixes_of(engine).stats.blocks_pinned == 0
        engine.embed("one", task="query")
        assert prefixes_of(engine).stats.blocks_pinned == 10
