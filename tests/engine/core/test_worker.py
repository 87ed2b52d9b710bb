"""Several workers on one model: side by side, queries past bulk, and every law as with one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from fakes import (
    FakeClock,
    FakeDeviceLost,
    FakeRunner,
    held_engine,
    start_engine,
    vectors_for,
    words,
)

from millpond import EngineClosed, EngineFailed, TextFailed
from millpond.engine.core.worker import WorkerPool

PATIENCE_S = 30.0


def runner_of(workers: int = 2, query_workers: int = 1, **options: object) -> FakeRunner:
    return FakeRunner(workers=workers, query_workers=query_workers, **options)  # type: ignore[arg-type]


def test_batches_run_side_by_side() -> None:
    with held_engine(runner := runner_of()) as engine:
        futures = [engine.submit([words(40, f"t{i}")] * 2, priority="bulk") for i in range(2)]
        runner.wait_for_batches(2)  # neither has come home
        assert not any(future.done() for future in futures)
        runner.let()
        for future in futures:
            assert len(future.result(PATIENCE_S)) == 2
    assert len(runner.threads) >= 2


def test_a_query_runs_while_every_other_worker_is_busy_with_bulk() -> None:
    with held_engine(runner := runner_of()) as engine:
        bulk = [f"t{i} {words(63)}" for i in range(5)]
        ingestion = engine.submit(bulk)
        runner.wait_for_batches(2)
        query = engine.submit("which one")
        runner.wait_for_batches(3)
        assert runner.batches[2].texts == ("which one",)
        runner.let()
        np.testing.assert_array_equal(query.result(PATIENCE_S).vectors, vectors_for(["which one"]))
        np.testing.assert_array_equal(ingestion.result(PATIENCE_S).vectors, vectors_for(bulk))


def test_queries_take_no_more_places_than_there_are_workers() -> None:
    with held_engine(runner := runner_of()) as engine:
        futures = [engine.submit(f"q{i} {words(60)}", priority="interactive") for i in range(6)]
        runner.wait_for_batches(2)
        runner.wait_until_held()
        assert len(runner.batches) == 2
        runner.let()
        for i, future in enumerate(futures):
            expected = vectors_for([f"q{i} {words(60)}"])
            np.testing.assert_array_equal(future.result(PATIENCE_S).vectors, expected)


def test_a_worker_for_queries_has_a_place_of_its_own_only_beside_bulk() -> None:
    pool = WorkerPool([runner_of()], clock=FakeClock())
    for_queries, *general = pool.workers
    for worker in general:
        assert pool.can_start(for_queries)
        pool.start(worker, has_bulk=False)
    assert not pool.can_start(for_queries)
    pool.look(general[1])
    pool.start(general[1], has_bulk=True)
    assert pool.can_start(for_queries)


def test_the_next_batch_is_launched_while_one_runs_also_if_its_texts_come_later() -> None:
    with held_engine(runner := FakeRunner(depth=2)) as engine:
        first = engine.submit("first")
        runner.wait_until_held()  # it has been launched, and its worker waits for it
        second = engine.submit("second")
        runner.wait_for_batches(2)
        third = engine.submit("third")
        assert not first.done()
        assert len(runner.batches) == 2  # no more than `depth` are in flight
        runner.let()
        for future, text in ((first, "first"), (second, "second"), (third, "third")):
            np.testing.assert_array_equal(future.result(PATIENCE_S).vectors, vectors_for([text]))


def test_where_queries_run_apart_they_and_bulk_share_no_batch_and_wait_for_none() -> None:
    runner = FakeRunner(depth=2, query_workers=1, queries_apart=True)
    with held_engine(runner) as engine:
        bulk = [f"t{i} {words(63)}" for i in range(4)]
        ingestion = engine.submit(bulk)
        runner.wait_for_batches(2)
        queries = [engine.submit(f"q{i} {words(60)}", priority="interactive") for i in range(3)]
        runner.wait_for_batches(3)
        runner.wait_until_held(3)
        assert [len(set(batch.priorities)) for batch in runner.batches] == [1, 1, 1]
        assert runner.batches[2].priorities == ("interactive",)
        runner.let()
        for i, query in enumerate(queries):
            expected = vectors_for([f"q{i} {words(60)}"])
            np.testing.assert_array_equal(query.result(PATIENCE_S).vectors, expected)
        np.testing.assert_array_equal(ingestion.result(PATIENCE_S).vectors, vectors_for(bulk))
    assert all(len(set(batch.priorities)) == 1 for batch in runner.batches)
    assert len(runner.batches) == 4 + 3


def test_what_waits_is_not_divided_among_the_workers_of_one_device() -> None:
    with held_engine(runner := FakeRunner(depth=2, max_batch_tokens=1000)) as engine:
        texts = [f"t{i} {words(99)}" for i in range(8)]
        future = engine.submit(texts)
        runner.wait_for_batches(1)
        assert len(runner.batches[0]) == 8
        runner.let()
        np.testing.assert_array_equal(future.result(PATIENCE_S).vectors, vectors_for(texts))


def test_workers_of_several_devices_take_one_of_each_first() -> None:
    runners = [FakeRunner(depth=2), FakeRunner(depth=2)]
    pool = WorkerPool(runners, clock=FakeClock())
    slots = [worker.slot for worker in pool.workers]
    assert slots[0] is slots[2] is not slots[1]
    assert slots[1] is slots[3]
    for worker in pool.workers:
        worker.idle = True
    assert pool.shares(pool.workers[0]) == (2, 2)
    pool.workers[1].idle = False
    pool.start(pool.workers[1], has_bulk=False)
    assert pool.shares(pool.workers[0]) == (1, 1)


def test_one_request_is_divided_among_free_workers() -> None:
    with held_engine(runner := runner_of(max_batch_tokens=1000)) as engine:
        texts = [f"t{i} {words(99)}" for i in range(8)]
        future = engine.submit(texts)
        runner.wait_for_batches(2)
        assert [len(batch) for batch in runner.batches] == [4, 4]
        runner.let()
        np.testing.assert_array_equal(future.result(PATIENCE_S).vectors, vectors_for(texts))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_many_callers_get_their_own_vectors(workers: int) -> None:
    engine = start_engine(runner_of(workers))
    wrong: list[str] = []

    def call(name: str) -> None:
        for turn in range(20):
            texts = [f"{name} {turn} {i} {words(i % 7 + 1)}" for i in range(turn % 5 + 1)]
            if not np.array_equal(engine.embed(texts), vectors_for(texts)):
                wrong.append(name)

    callers = [threading.Thread(target=call, args=(f"c{i}",)) for i in range(8)]
    with engine:
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(PATIENCE_S)
        assert not wrong
        assert engine.stats().texts == 8 * 20 * 3
    assert engine.health == "closed"


def test_a_bad_text_fails_alone_beside_other_workers() -> None:
    with start_engine(runner_of(raises_on={"bad"})) as engine:
        texts = [f"t{i} {words(20)}" for i in range(30)]
        texts[17] = f"bad {words(20)}"
        result = engine.submit(texts).result(PATIENCE_S)
        assert list(result.errors) == [17]
        assert isinstance(result.errors[17], TextFailed)


def test_a_lost_device_ends_everything_on_every_worker() -> None:
    runner = runner_of(fatal_on={"fatal"})
    with held_engine(runner) as engine:
        futures = [engine.submit([f"t{i} {words(63)}"], priority="bulk") for i in range(4)]
        futures.append(engine.submit("fatal"))
        runner.wait_for_batches(2)
        runner.let()
        with pytest.raises(EngineFailed) as failed:
            futures[-1].result(PATIENCE_S)
        assert isinstance(failed.value.__cause__, FakeDeviceLost)
        for future in futures[:-1]:
            error = future.exception(PATIENCE_S)
            assert error is None or isinstance(error, EngineFailed)
        assert engine.health == "failed"


def test_closing_drains_every_worker_and_stops_them() -> None:
    before = threading.active_count()
    runner = runner_of(4)
    engine = start_engine(runner)
    futures = [engine.submit([words(30, f"t{i}")], priority="bulk") for i in range(12)]
    engine.close()
    assert all(future.done() for future in futures)
    assert engine.health == "closed"
    assert threading.active_count() == before
    with pytest.raises(EngineClosed):
        engine.embed("late")


def test_a_deadline_passes_while_every_worker_is_idle_or_busy() -> None:
    with held_engine(runner := runner_of()) as engine:
        running = [engine.submit([words(63, f"t{i}")], priority="bulk") for i in range(2)]
        runner.wait_for_batches(2)
        waiting = engine.submit([words(63, "late")], priority="bulk", timeout=0.01)
        with pytest.raises(TimeoutError):
            engine.embed([words(63, "later")], priority="bulk", timeout=0.01)
        runner.let()
        for future in running:
            assert future.result(PATIENCE_S)
        assert isinstance(waiting.exception(PATIENCE_S), TimeoutError)
