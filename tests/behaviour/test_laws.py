"""The laws of scheduling and ending, 4 to 9, with a runner whose every fault is scripted.

Laws 1 to 3 are about the arithmetic of real models and are tested with those.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from fakes import (
    DIMENSION,
    PATIENCE_S,
    FakeRunner,
    FakeTokenizer,
    held_engine,
    start_engine,
    vectors_for,
    words,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond import (
    DeadlineExceeded,
    Embeddings,
    Engine,
    EngineClosed,
    EngineError,
    EngineFailed,
    InvalidInput,
    MillpondError,
    NonFiniteVector,
    OutOfMemory,
    QueueFull,
    TextFailed,
    TextsFailed,
)
from millpond.scheduler.batch import BatchShape

pytestmark = pytest.mark.usefixtures("quiet_log")  # the faults are meant

PADDED = BatchShape(8)


def text_of(size: int, name: object) -> str:
    """A text of so many tokens that no other text equals."""
    return words(size - 1, f"w{name}") + f" t{name}"


# Law 4: vector i belongs to text i.


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["", " ", "a", "a", "b c", "d e f", words(20), "ü 東京"]), max_size=40
    ),
    st.integers(1, 30),
    st.sampled_from([BatchShape(), BatchShape(1), PADDED]),
    st.sampled_from(["interactive", "bulk"]),
)
def test_vector_i_belongs_to_text_i(
    texts: list[str], batch_tokens: int, shape: BatchShape, priority: str
) -> None:
    with start_engine(FakeRunner(max_batch_tokens=batch_tokens, shapes=(shape,))) as engine:
        np.testing.assert_array_equal(engine.embed(texts, priority=priority), vectors_for(texts))


def shuffled_texts(seed: int, most: int = 40) -> list[str]:
    chance = random.Random(seed)
    return [
        words(chance.randrange(12), chance.choice("abcde")) for _ in range(chance.randrange(most))
    ]


def test_order_and_count_hold_from_many_threads_and_event_loops_at_once() -> None:
    runner = FakeRunner(max_batch_tokens=32, depth=2)
    wrong: list[object] = []

    def compare(found: np.ndarray, texts: list[str]) -> None:
        if not np.array_equal(found, vectors_for(texts)):
            wrong.append(texts)

    def synchronous(seed: int) -> None:
        for step in range(8):
            texts = shuffled_texts(100 * seed + step)
            compare(engine.embed(texts, priority="interactive" if step % 2 else None), texts)

    def in_event_loops(seed: int) -> None:
        async def calls() -> None:
            many = [shuffled_texts(100 * seed + step) for step in range(4)]
            for texts, found in zip(
                many, await asyncio.gather(*map(engine.aembed, many)), strict=True
            ):
                compare(found, texts)

        for _ in range(2):  # a new loop for every call, as LlamaIndex does
            asyncio.run(calls())

    with start_engine(runner) as engine, ThreadPoolExecutor(8) as pool:
        requests = [
            pool.submit(in_event_loops if seed % 2 else synchronous, seed) for seed in range(16)
        ]
        for request in requests:
            request.result(PATIENCE_S)
    assert wrong == []
    assert len(runner.threads) <= runner.depth, "a thread for each batch in flight"


# Law 5: every accepted text ends exactly once.


class Endings:
    """How often each future ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: dict[Future[Embeddings], int] = {}

    def watch(self, future: Future[Embeddings]) -> None:
        self.counts[future] = 0
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[Embeddings]) -> None:
        with self._lock:
            self.counts[future] += 1


FAULTY = {
    "raises_on": ["poison"],
    "not_finite_on": ["nan"],
    "memory_error_on": ["huge"],
    "tokenizer_raises_on": ["broken"],
    "refuses": ["refused"],
}


def faulty_texts(chance: random.Random) -> list[str]:
    """Mostly good texts, each different, some with one of the faults."""
    texts = []
    for _ in range(chance.randrange(1, 12)):
        fault = chance.choice(["poison", "nan", "huge"]) if chance.random() < 0.15 else ""
        texts.append(f"{words(chance.randrange(1, 8))} {fault} n{chance.random()}")
    if chance.random() < 0.1:
        texts.append(chance.choice(["broken", "refused"]))
    return texts


def check_ending(future: Future[Embeddings], texts: list[str]) -> None:
    """A vector, a typed error or a cancellation, and the right one."""
    try:
        result = future.result(PATIENCE_S)
    except CancelledError:
        return
    except EngineError:
        return
    assert len(result) == len(texts)
    expected = vectors_for(texts)
    for row, text in enumerate(texts):
        kind: type[TextFailed | InvalidInput] | None = None
        if "poison" in text:
            kind = TextFailed
        elif "huge" in text:
            kind = OutOfMemory
        elif "nan" in text:
            kind = NonFiniteVector
        elif "refused" in text:
            kind = InvalidInput
        if kind is None:
            np.testing.assert_array_equal(result.vectors[row], expected[row])
            assert row not in result.errors
        else:
            assert type(result.errors[row]) is kind
            assert result.errors[row].index == row
            assert np.isnan(result.vectors[row]).all()


@pytest.mark.parametrize("seed", range(12))
def test_every_accepted_text_ends_exactly_once_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    runner = FakeRunner(
        max_batch_tokens=chance.choice([4, 16, 64]),
        depth=chance.choice([1, 2]),
        shapes=(chance.choice([BatchShape(), PADDED]),),
        fatal_on=["fatal"] if seed % 4 == 3 else [],
        **FAULTY,
    )
    engine = start_engine(runner, max_queue_tokens=chance.choice([50, 1_000_000]))
    endings, accepted = Endings(), dict[Future[Embeddings], list[str]]()
    lock = threading.Lock()

    def caller(own: random.Random) -> None:
        for _ in range(25):
            texts = faulty_texts(own)
            if own.random() < 0.01:
                texts.append("fatal")
            try:
                future = engine.submit(
                    texts,
                    priority=own.choice(["interactive", "bulk"]),
                    wait=own.random() < 0.8,
                    timeout=own.choice([None, None, None, 0.001, 5.0]),
                )
            except QueueFull:
                continue
            except (EngineError, InvalidInput):
                continue
            with lock:
                endings.watch(future)
                accepted[future] = texts
            if own.random() < 0.15:
                future.cancel()

    callers = [
        threading.Thread(target=caller, args=(random.Random(seed * 10 + number),))
        for number in range(4)
    ]
    for thread in callers:
        thread.start()
    if seed % 3:  # close while they are at it: at once, or when a few batches are through
        runner.wait_for_batches(chance.randrange(1, 20))
        engine.close(drain=chance.random() < 0.5)
    for thread in callers:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a caller waits for ever"
    engine.close(drain=chance.random() < 0.5)

    for future, texts in accepted.items():
        check_ending(future, texts)
    assert set(endings.counts.values()) <= {1}
    core = engine._instance.core
    assert "pending_requests=0" in repr(core)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "submit", "query", "cancel", "let", "expire"]),
            st.integers(0, 20),
        ),
        max_size=25,
    ),
    st.booleans(),
)
def test_any_order_of_calls_and_cancellations_ends_every_future(
    steps: list[tuple[str, int]], drain: bool
) -> None:
    runner = FakeRunner(max_batch_tokens=8, **FAULTY)
    runner.hold()
    engine = start_engine(runner)
    endings, accepted = Endings(), dict[Future[Embeddings], list[str]]()
    for step, (action, number) in enumerate(steps):
        futures = list(accepted)
        if action in ("submit", "query"):
            fault = ["", "", "", "poison", "nan", "huge"][number % 6]
            texts = [text_of(1 + n % 5, f"{step}-{n}") for n in range(number)] + [fault]
            priority = "bulk" if action == "submit" else "interactive"
            future = engine.submit(texts, priority=priority)
            endings.watch(future)
            accepted[future] = texts
        elif action == "cancel" and futures:
            futures[number % len(futures)].cancel()
        elif action == "let":
            runner.let(number)
        elif action == "expire" and futures:
            with suppress(MillpondError):
                engine.embed([f"late{step}", "x"], timeout=0.001)
    runner.let()
    engine.close(drain=drain)
    for future, texts in accepted.items():
        assert future.done()
        check_ending(future, texts)
    assert set(endings.counts.values()) <= {1}


def fails_typed(call: Callable[[], object], error: type[Exception] = EngineFailed) -> Exception:
    with pytest.raises(error) as caught:
        call()
    return caught.value


def test_a_dead_loop_fails_everything_pending_at_once_and_every_later_call() -> None:
    runner = FakeRunner(max_batch_tokens=4, fatal_on=["fatal"])
    with held_engine(runner, max_queue_tokens=20) as engine:
        first = engine.submit(["fatal", "x"], priority="bulk")
        runner.wait_for_batches(1)
        pending = [engine.submit([f"a{n}", "b"], priority="bulk") for n in range(4)]

        def submit_more() -> None:  # no room: it is blocked, or comes too late
            with suppress(EngineFailed):
                pending.append(engine.submit([words(20)] * 3, priority="bulk"))

        in_the_room = threading.Thread(target=submit_more)
        in_the_room.start()
        runner.let(1)
        in_the_room.join(PATIENCE_S)
        assert not in_the_room.is_alive(), "submit is blocked for ever"
        for future in [first, *pending]:
            error = fails_typed(lambda future=future: future.result(PATIENCE_S))  # type: ignore[misc]
            assert type(error.__cause__).__name__ == "FakeDeviceLost"
        assert engine.health == "failed"
        for call in (engine.embed, engine.submit, lambda text: asyncio.run(engine.aembed(text))):
            assert "the device is gone" in str(fails_typed(lambda call=call: call("again")))  # type: ignore[misc]
        launched = len(runner.batches)
        assert launched == 1, "nothing ran after the end"


def test_a_loop_that_dies_of_anything_at_all_fails_its_calls() -> None:
    class Leaving(FakeRunner):
        def launch(self, batch: Any) -> Any:
            raise SystemExit("somebody called sys.exit in a hook of the model")

    with start_engine(Leaving()) as engine:
        fails_typed(lambda: engine.embed(["a", "b"]))
        assert engine.health == "failed"


def test_a_tokenizer_thread_that_dies_fails_its_calls() -> None:
    class Leaving(FakeTokenizer):
        def encode(self, *_: Any, **__: Any) -> Any:
            raise SystemExit

    runner = FakeRunner()
    with start_engine(runner, tokenizer=Leaving(runner)) as engine:
        fails_typed(lambda: engine.submit(["a", "b"]).result(30))
        assert engine.health == "failed"


# Law 6: one bad text does not take its neighbours down.


def test_a_poisonous_text_is_found_and_it_alone_fails() -> None:
    runner = FakeRunner(max_batch_tokens=1000, raises_on=["poison"])
    texts = [f"text {n}" for n in range(64)]
    texts[41] = "poison pill"
    with held_engine(runner) as engine:
        blocker = engine.submit("first")  # so that the others share a batch
        runner.wait_for_batches(1)
        neighbour = engine.submit(["a neighbour", "another"], priority="bulk")
        future = engine.submit(texts)
        runner.let()
        result = future.result(PATIENCE_S)
        assert list(result.errors) == [41]
        assert "RuntimeError: the model does not like it" in str(result.errors[41])
        assert isinstance(result.errors[41].__cause__, RuntimeError)
        good = np.arange(64) != 41
        np.testing.assert_array_equal(result.vectors[good], vectors_for(texts)[good])
        assert not neighbour.result(PATIENCE_S).errors
        assert not blocker.result(PATIENCE_S).errors
        assert len(runner.batches) <= 2 + 2 * 7, "found by bisection, not one by one"
        assert engine.info().max_batch_tokens == 1000
        assert engine.embed("after").shape == (DIMENSION,)


def test_embed_raises_one_error_that_names_the_indices() -> None:
    with start_engine(FakeRunner(raises_on=["poison"], not_finite_on=["nan"])) as engine:
        with pytest.raises(TextsFailed, match=r"index 1, 3") as several:
            engine.embed(["a", "poison", "b", "nan"])
        assert [type(e) for e in several.value.errors.values()] == [TextFailed, NonFiniteVector]
        with pytest.raises(TextFailed, match="text 1: ") as one:
            engine.embed(["a", "poison", "b"])
        assert one.value.index == 1
        with pytest.raises(NonFiniteVector, match="text 0: "):
            engine.embed("nan")


def test_a_vector_that_is_not_finite_is_an_error_and_never_a_result() -> None:
    with start_engine(FakeRunner(not_finite_on=["nan"])) as engine:
        for output_dtype in ("float32", "float16", "int8", "uint8", "binary", "ubinary"):
            future = engine.submit(["a", "nan", "c"], output_dtype=output_dtype)  # type: ignore[typeddict-item]
            result = future.result(PATIENCE_S)
            assert list(result.errors) == [1], output_dtype
            assert result.vectors.shape[0] == 3
        assert engine.stats().failed_texts == 6


def test_a_vector_that_float16_cannot_hold_is_an_error() -> None:
    with start_engine(FakeRunner(scale=1e6)) as engine:
        assert np.isfinite(engine.embed(["a", "b"])).all()
        with pytest.raises(TextsFailed, match="too long for float16"):
            engine.embed(["a", "b"], output_dtype="float16")
        assert np.isfinite(engine.embed(["a", "b"], output_dtype="float16", normalize=True)).all()


@pytest.mark.parametrize("shape", [BatchShape(), PADDED])
def test_out_of_memory_splits_the_batch_and_shrinks_the_next_ones(shape: BatchShape) -> None:
    runner = FakeRunner(max_batch_tokens=64, memory_tokens=24, shapes=(shape,))
    texts = [text_of(1 + n % 8, n) for n in range(60)]
    with start_engine(runner) as engine:
        np.testing.assert_array_equal(engine.embed(texts), vectors_for(texts))
        assert engine.health == "ready"
        assert runner.memory_freed
        before = len(runner.batches)
        np.testing.assert_array_equal(engine.embed(texts), vectors_for(texts))
        sizes = [batch.tokens for batch in runner.batches[before:]]
        assert sum(size > 24 for size in sizes) <= len(sizes) / 4, "now and then it tries again"


def test_a_text_that_does_not_fit_in_memory_alone_fails_alone() -> None:
    runner = FakeRunner(max_batch_tokens=64, memory_tokens=16)
    texts = ["a b", words(40), "c"]
    with start_engine(runner) as engine:
        result = engine.submit(texts).result(PATIENCE_S)
        assert [type(error) for error in result.errors.values()] == [OutOfMemory]
        np.testing.assert_array_equal(result.vectors[[0, 2]], vectors_for(["a b", "c"]))
        assert engine.embed(["a b", "c"]).shape == (2, DIMENSION)


def test_a_text_that_fits_alone_is_not_failed_for_the_batch_in_flight_beside_it() -> None:
    runner = FakeRunner(max_batch_tokens=16, memory_tokens=16, depth=2)
    texts = [text_of(16, n) for n in range(6)]
    with start_engine(runner) as engine:
        np.testing.assert_array_equal(engine.embed(texts), vectors_for(texts))


def test_the_tensors_of_a_failed_pass_are_let_go_before_the_next() -> None:
    class Hoarding(FakeRunner):
        held = 0

        def launch(self, batch: Any) -> Any:
            class Tensor:
                def __init__(self, runner: Hoarding) -> None:
                    self.runner = runner
                    runner.held += 1

                def __del__(self) -> None:
                    self.runner.held -= 1

            activations = Tensor(self)
            assert self.held == 1, "those of the failed pass are still there"
            handle = super().launch(batch)
            del activations
            return handle

    runner = Hoarding(memory_error_on=["huge"])
    with start_engine(runner) as engine:
        result = engine.submit(["a", "huge", "c", "d"]).result(PATIENCE_S)
        assert [type(error) for error in result.errors.values()] == [OutOfMemory]
        assert runner.held == 0


def test_a_tokenizer_that_breaks_fails_the_call_and_not_the_engine() -> None:
    runner = FakeRunner(max_batch_tokens=4, tokenizer_raises_on=["broken"], refuses=["refused"])
    with held_engine(runner) as engine:
        engine.submit("first")
        runner.wait_for_batches(1)
        neighbour = engine.submit(["a", "b"], priority="bulk")
        bulk = engine.submit(["c", "broken"], priority="bulk")
        runner.let()
        with pytest.raises(EngineError, match="RuntimeError: the tokenizer is broken"):
            bulk.result(PATIENCE_S)
        with pytest.raises(EngineError, match="RuntimeError: the tokenizer is broken"):
            engine.embed("broken")
        with pytest.raises(InvalidInput, match="text 1: it is refused"):
            engine.embed(["c", "refused"])
        assert len(neighbour.result(PATIENCE_S)) == 2
        assert engine.health == "ready"


# Law 7: a query does not wait behind ingestion, and ingestion goes on.


@pytest.mark.parametrize("depth", [1, 2])
def test_a_query_during_ingestion_is_in_the_next_batch_planned(depth: int) -> None:
    runner = FakeRunner(max_batch_tokens=8, depth=depth)
    with held_engine(runner) as engine:
        bulk = engine.submit([text_of(4, n) for n in range(200)], priority="bulk")
        for number in range(20):
            runner.wait_until_held(depth)
            launched = len(runner.batches)
            engine.submit(f"query{number}")
            runner.let(1)
            runner.wait_for_batches(launched + 1)
            assert f"query{number}" in runner.batches[launched]
            runner.wait_until_held(depth)
            runner.let(1)
            runner.wait_for_batches(launched + 2)
        assert not bulk.done()
        assert any(set(batch.priorities) == {"bulk"} for batch in runner.batches[2:])


def test_ingestion_goes_on_under_steady_queries() -> None:
    runner = FakeRunner(max_batch_tokens=8)
    with held_engine(runner, max_query_wait_ms=1.0) as engine:
        texts = [text_of(4, n) for n in range(30)]
        bulk = engine.submit(texts, priority="bulk")
        runner.wait_for_batches(1)
        number = 0
        while not bulk.done():  # there is always a query waiting when a batch is planned
            engine.submit(f"query{number}")
            runner.let(1)
            number += 1
            runner.wait_for_batches(number + 1)
            assert number < 100_000
        np.testing.assert_array_equal(bulk.result().vectors, vectors_for(texts))
        # Two texts ran before the first query. After it, however slow the machine, a batch has room
        # for one text beside its query.
        assert number >= len(texts) - 2


# Law 8: bounded.


def test_embed_iter_keeps_the_texts_in_flight_bounded_over_any_corpus() -> None:
    runner = FakeRunner(max_batch_tokens=256)
    read = given_back = most_ahead = 0

    def corpus() -> Iterator[str]:
        nonlocal read, most_ahead
        for number in range(50_000):
            read += 1
            most_ahead = max(most_ahead, read - given_back)
            yield f"n{number}"

    with start_engine(runner) as engine:
        for matrix in engine.embed_iter(corpus(), chunk_size=512, timeout=3600):
            given_back += len(matrix)
            assert matrix.shape[1] == DIMENSION
        assert given_back == 50_000
        assert most_ahead <= 4 * 512
        assert runner.most_texts_ahead <= 4 * 512
        assert len(engine._instance.core.scheduler._deadlines) <= 4, "finished calls are kept"


def test_embed_iter_gives_the_vectors_in_order() -> None:
    texts = [text_of(1 + n % 9, n) for n in range(203)]
    with start_engine(FakeRunner()) as engine:
        matrices = list(engine.embed_iter(iter(texts), chunk_size=20))
        assert [len(matrix) for matrix in matrices] == [20] * 10 + [3]
        np.testing.assert_array_equal(np.concatenate(matrices), vectors_for(texts))


def test_an_abandoned_embed_iter_takes_its_texts_out() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner) as engine:
        runner.let()
        results = engine.embed_iter((f"n{n}" for n in range(1_000_000)), chunk_size=64)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert engine.stats().waiting_bulk_tokens == 0
        assert engine.embed("after").shape == (DIMENSION,)
        while "pending_requests=0" not in repr(engine._instance.core):
            pass  # until the background thread has dropped them


def test_embed_iter_names_a_failed_text_by_its_place_in_the_corpus() -> None:
    texts = [f"n{n}" for n in range(50)]
    with start_engine(FakeRunner(raises_on=["poison"])) as engine:
        for bad, indices in (([33], [33]), ([33, 37], [33, 37])):
            corpus = ["poison" if n in bad else text for n, text in enumerate(texts)]
            with pytest.raises(TextFailed) as caught:
                list(engine.embed_iter(corpus, chunk_size=10))
            assert caught.value.index == 33
            if isinstance(caught.value, TextsFailed):
                assert list(caught.value.errors) == indices
                assert caught.value.errors[37].index == 37
        with pytest.raises(InvalidInput, match="text 41: "):
            list(engine.embed_iter([*texts[:41], 7, *texts], chunk_size=10))  # type: ignore[list-item]


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
def test_a_full_queue_refuses_those_who_will_not_wait(priority: Any) -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner, max_queue_tokens=100) as engine:
        first = engine.submit([words(4)], priority=priority)
        runner.wait_for_batches(1)
        texts = [[7] * 20] * 4  # of token ids the size is known, of strings it is guessed
        accepted = [engine.submit(texts, priority=priority, wait=False)]
        with pytest.raises(QueueFull, match=f"the {priority} queue"):
            engine.submit(texts, priority=priority, wait=False)
        other = "bulk" if priority == "interactive" else "interactive"
        accepted.append(engine.submit(texts, priority=other, wait=False))
        runner.let()
        for future in [first, *accepted]:
            assert not future.result(PATIENCE_S).errors


def test_submit_blocks_while_the_queue_is_full_and_goes_on_when_there_is_room() -> None:
    runner = FakeRunner(max_batch_tokens=20)
    with held_engine(runner, max_queue_tokens=100) as engine:
        engine.submit([words(4)], priority="bulk")
        runner.wait_for_batches(1)
        engine.submit([[7] * 20] * 5, priority="bulk")
        returned = threading.Event()

        def third() -> None:
            engine.submit([[7] * 20] * 4, priority="bulk")
            returned.set()

        thread = threading.Thread(target=third)
        thread.start()
        for launched in range(1, 5):
            runner.wait_for_batches(launched)
            assert not returned.is_set(), "there is no room yet"
            runner.let(1)
        assert returned.wait(PATIENCE_S)
        thread.join(PATIENCE_S)


def test_a_call_larger_than_the_bound_is_served() -> None:
    with start_engine(FakeRunner(), max_queue_tokens=10) as engine:
        texts = [text_of(8, n) for n in range(50)]
        np.testing.assert_array_equal(engine.embed(texts), vectors_for(texts))


# Law 9: cancelled work is not run.


def test_a_cancelled_future_is_not_run() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner) as engine:
        running = engine.submit(["r1 r2 r3 r4", "r5 r6 r7 r8", "never"], priority="bulk")
        runner.wait_for_batches(1)
        waiting = engine.submit(["lost", "gone"], priority="bulk")
        assert waiting.cancel()
        assert running.cancel(), "a call some of whose texts run can be cancelled too"
        runner.let()
        assert engine.embed("after").shape == (DIMENSION,)
        assert set(runner.ran) == {"r1 r2 r3 r4", "after"}
        stats = engine.stats()
        assert stats.cancelled_texts in (4, 5)  # the one that ran may count as such, or not
        assert (stats.waiting_bulk_tokens, stats.waiting_interactive_tokens) == (0, 0)


def test_a_cancelled_await_is_not_run() -> None:
    runner = FakeRunner(max_batch_tokens=4)

    async def cancel_one(engine: Engine, timeout: float | None) -> None:
        task = asyncio.ensure_future(engine.aembed(["lost", "gone"], timeout=timeout))
        await asyncio.sleep(0)  # let it hand its texts in
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with held_engine(runner) as engine:
        engine.submit("first")
        runner.wait_for_batches(1)
        for timeout in (None, 60.0):
            asyncio.run(cancel_one(engine, timeout))
        assert engine.stats().cancelled_texts == 4
        runner.let()
        engine.embed("after")
        assert runner.ran == ["first", "after"]


def test_what_was_cancelled_is_not_run_again_when_its_batch_is_split() -> None:
    runner = FakeRunner(max_batch_tokens=16, raises_on=["poison"])
    with held_engine(runner) as engine:
        engine.submit("first")
        runner.wait_for_batches(1)
        kept = engine.submit(["poison", "good"], priority="interactive")
        cancelled = engine.submit(["lost", "gone"], priority="interactive")
        runner.let(1)
        runner.wait_for_batches(2)
        assert len(runner.batches[1]) == 4
        cancelled.cancel()
        taken_out = threading.Event()
        engine._instance.core.background.add(taken_out.set)  # after what was cancelled
        assert taken_out.wait(PATIENCE_S)
        runner.let()
        assert list(kept.result(PATIENCE_S).errors) == [0]
        again = [text for batch in runner.batches[2:] for text in batch.texts]
        assert set(again) == {"good", "poison"}


@pytest.mark.parametrize("way", ["embed", "aembed", "submit"])
def test_a_passed_deadline_ends_the_call_and_is_not_run(way: str) -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner) as engine:
        engine.submit("first")
        runner.wait_for_batches(1)

        def submitted() -> object:
            future = engine.submit(["late", "later"], timeout=1e-9)
            runner.let(1)
            return future.result(PATIENCE_S)

        calls = {
            "embed": lambda: engine.embed(["late", "later"], timeout=0.02),
            "aembed": lambda: asyncio.run(engine.aembed(["late", "later"], timeout=0.02)),
            "submit": submitted,
        }
        with pytest.raises(DeadlineExceeded, match="0 of its 2 texts") as caught:
            calls[way]()
        assert isinstance(caught.value, TimeoutError)
        runner.let()
        engine.embed("after")
        assert runner.ran == ["first", "after"]


def test_a_deadline_passes_without_any_other_work() -> None:
    class Slow(FakeTokenizer):
        """Its tokenizer is busy with one text for as long as the test takes."""

        busy = threading.Event()

        def encode(self, *texts: Any, **options: Any) -> Any:
            assert self.busy.wait(PATIENCE_S)
            return super().encode(*texts, **options)

    tokenizer = Slow(runner := FakeRunner())
    with start_engine(runner, tokenizer=tokenizer) as engine:
        future = engine.submit(["a", "b"], timeout=0.02)
        with pytest.raises(DeadlineExceeded):
            future.result(PATIENCE_S)
        tokenizer.busy.set()
        engine.embed("after")
        assert runner.ran == ["after"]


def test_cancelled_texts_leave_room_for_others() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner, max_queue_tokens=50) as engine:
        engine.submit("first")
        runner.wait_for_batches(1)
        full = engine.submit([words(20)] * 5, priority="bulk")
        with pytest.raises(QueueFull):
            engine.submit(["a", "b"], priority="bulk", wait=False)
        full.cancel()
        future = engine.submit(["a", "b"], priority="bulk", wait=False)
        runner.let()
        assert len(future.result(PATIENCE_S)) == 2


def test_those_who_wait_for_several_futures_hear_of_cancelled_ones() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner) as engine:
        futures = [engine.submit([f"a{n}", "b"], priority="bulk") for n in range(3)]
        runner.wait_for_batches(1)
        for future in futures:
            future.cancel()
        assert set(as_completed(futures, timeout=PATIENCE_S)) == set(futures)
        done, rest = wait(futures, timeout=PATIENCE_S, return_when=FIRST_EXCEPTION)
        assert (len(done), len(rest)) == (3, 0)


def test_futures_of_an_aborted_engine_end_typed() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner) as engine:
        futures = [engine.submit([f"a{n}", "b c d e"], priority="bulk") for n in range(3)]
        runner.wait_for_batches(1)
        closing = threading.Thread(target=engine.close, kwargs={"drain": False})
        closing.start()
        for future in futures:
            fails_typed(lambda future=future: future.result(PATIENCE_S), EngineClosed)  # type: ignore[misc]
        runner.let()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        assert len(runner.batches) == 1


def test_vectors_that_nobody_holds_are_freed_without_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        with start_engine(FakeRunner()) as engine:
            kept = [weakref.ref(engine.submit(["a", "b"]).result(PATIENCE_S)) for _ in range(20)]
            assert engine.embed(["c"], priority="bulk").shape == (1, DIMENSION)
            assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()
