"""Passes of ingestion that step aside for queries."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fakes import PATIENCE_S

from millpond.cpu import preemption as right_of_way
from millpond.cpu.preemption import Preemption, here, yield_to_queries


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes on because time is up."""
    monkeypatch.setattr(right_of_way, "MOST_S", PATIENCE_S)


class Query:
    """A pass for queries on a thread, a caller's or an engine's own, from now until `end`."""

    def __init__(self, way: Preemption, *, is_own: bool = False, may_move: bool = True) -> None:
        self._may_move = may_move
        self.thread_id: int | None = None
        self._begun, self._may_end = threading.Event(), threading.Event()
        run = self._run_on_own if is_own else self._run
        self._thread = threading.Thread(target=run, args=(way,))
        self._thread.start()
        assert self._begun.wait(PATIENCE_S)

    def _run(self, way: Preemption) -> None:
        with way.query():
            self._wait()

    def _run_on_own(self, way: Preemption) -> None:
        self.thread_id = threading.get_native_id()
        for _ in range(2):  # a batch that was split: the second pass is of the same
            way.begin_query(may_move=self._may_move)
        self._wait()
        way.end_query()
        way.end_query()  # nothing is left to end

    def _wait(self) -> None:
        yield_to_queries()  # not for another query
        self._begun.set()
        assert self._may_end.wait(PATIENCE_S)

    def end(self) -> None:
        self._may_end.set()
        self._thread.join(PATIENCE_S)


@contextmanager
def ingestion(way: Preemption) -> Iterator[None]:
    """A pass of ingestion on this thread, as a CPU's workers run it."""
    here.yields_to, here.not_before_s = way, 0.0
    try:
        yield
    finally:
        here.yields_to = None


@contextmanager
def ingesting(way: Preemption, work: Callable[[], None]) -> Iterator[threading.Thread]:
    def run() -> None:
        with ingestion(way):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    yield thread
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def wait_until(way: Preemption, yielding: int) -> None:
    """Until so many passes wait. Entering the lock lets others go on."""
    for _ in range(1_000_000):
        with way._changed:
            if way.yielding == yielding:
                return
    raise AssertionError(f"{way.yielding} passes yield, not {yielding}")


def test_ingestion_waits_until_the_query_is_through() -> None:
    way, through = Preemption(), threading.Event()

    def work() -> None:
        yield_to_queries()
        through.set()

    query = Query(way)
    with ingesting(way, work):
        wait_until(way, 1)
        assert not through.is_set()
        query.end()
    assert through.is_set()
    assert (len(way.running), way.yielding) == (0, 0)


def test_ingestion_makes_room_for_a_query_that_has_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(right_of_way, "ARRIVAL_S", PATIENCE_S)
    way, through = Preemption(), threading.Event()
    way.has_waiting = lambda: not way.running

    def work() -> None:
        yield_to_queries()
        through.set()

    with ingesting(way, work):
        wait_until(way, 1)
        query = Query(way)
        with ingesting(way, yield_to_queries) as other:  # one makes room, and one is enough
            other.join(PATIENCE_S)
        assert not through.is_set()
        query.end()
    assert through.is_set()
    assert way.yielding == 0


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[int]]]:
    """What threads are kept to, of processors 4 to 6; all of them run on 5."""
    found: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(right_of_way, "CAN_MOVE", True)
    monkeypatch.setattr(right_of_way, "this_processor", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *move: found.append(move), raising=False)
    return found


def test_a_query_gets_the_processor_of_the_pass_that_waits_for_it(
    moves: list[tuple[int, set[int]]],
) -> None:
    way = Preemption()
    query = Query(way, is_own=True)
    with ingesting(way, yield_to_queries):
        wait_until(way, 1)
        query.end()
    assert moves == [(query.thread_id, {5}), (query.thread_id, {4, 5, 6})]


def test_a_query_that_was_waited_for_begins_there(
    moves: list[tuple[int, set[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(right_of_way, "ARRIVAL_S", PATIENCE_S)
    way = Preemption()
    way.has_waiting = lambda: not way.running
    with ingesting(way, yield_to_queries):
        wait_until(way, 1)
        query = Query(way, is_own=True)
        assert moves == [(query.thread_id, {5})]
        query.end()
    assert moves == [(query.thread_id, {5}), (query.thread_id, {4, 5, 6})]
    assert way._free == []


@pytest.mark.parametrize("of_several", [False, True])
def test_the_thread_of_a_caller_or_a_team_is_left_where_it_is(
    moves: list[tuple[int, set[int]]], of_several: bool
) -> None:
    way = Preemption()
    query = Query(way, is_own=of_several, may_move=False)
    with ingesting(way, yield_to_queries):
        wait_until(way, 1)
        query.end()
    assert moves == []


def test_a_query_that_gets_no_pass_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right_of_way, "ARRIVAL_S", 0.0)
    way = Preemption()
    way.has_waiting = lambda: True
    with ingestion(way):
        yield_to_queries()
    assert way.yielding == 0


def test_no_more_wait_than_queries_run() -> None:
    way = Preemption()
    query = Query(way)
    with ingesting(way, yield_to_queries):
        wait_until(way, 1)
        with ingesting(way, yield_to_queries) as other:
            other.join(PATIENCE_S)  # it runs on
            assert not other.is_alive()
        assert way.yielding == 1
        query.end()


def test_nobody_waits_without_a_query_or_outside_a_pass() -> None:
    way = Preemption()
    with ingestion(way):
        yield_to_queries()
    query = Query(way)
    yield_to_queries()  # this thread runs nothing
    query.end()
    assert way.yielding == 0


def test_who_has_waited_runs_for_as_long_before_it_waits_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way, waits = Preemption(), []
    now = [100.0]
    monkeypatch.setattr(right_of_way.time, "perf_counter", lambda: now[0])

    def wait() -> float:
        waits.append(now[0])
        now[0] += 3.0
        return 3.0

    monkeypatch.setattr(way, "wait", wait)
    query = Query(way)
    with ingestion(way):
        for now[0] in (100.0, 104.0, 105.9, 106.0):
            yield_to_queries()
    query.end()
    assert waits == [100.0, 106.0]


def test_a_pass_that_fails_lets_go() -> None:
    way = Preemption()
    with pytest.raises(ZeroDivisionError), way.query():
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), ingestion(way):
        raise ZeroDivisionError
    assert len(way.running) == 0
    with way.query():
        yield_to_queries()  # the pass is over
        assert way.yielding == 0


def test_a_query_whose_caller_was_interrupted_keeps_nobody_waiting() -> None:
    way = Preemption()
    query = way.query()
    query.__enter__()
    assert len(way.running) == 1
    del query  # the interrupt came before it could say that it is through
    assert len(way.running) == 0
