"""What becomes of an engine's calls when a process that runs its model ends: law 5 on replicas."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_models import engine_of, task
from fakes import PATIENCE_S, FakeRunner, start_engine, vectors_for
from left_behind import is_alive, nothing_left_behind, wait_until_gone
from slot_memory import RememberingRunner

from millpond import Engine, EngineFailed, ProcessDied, TextFailed
from millpond.engine.core.worker import WorkerPool

pytestmark = pytest.mark.slow  # processes of its own

TEXTS = [f"text {number}" for number in range(100)]
SUPPORT = str(Path(__file__).parents[1] / "support")


def wait_until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s
        threading.Event().wait(0.01)  # for what another process does


def kill(engine: Engine, *places: int) -> None:
    for place in places:
        os.kill(engine.info().processes[place], signal.SIGKILL)


# The rule, on runners in this process.


def test_a_batch_of_a_lost_runner_runs_again_on_another() -> None:
    runners = [FakeRunner(fatal_on=["x"]), FakeRunner()]
    with start_engine(runners) as engine:
        for _ in range(20):  # until the first has been given one of them
            future = engine.submit(["x y", "z"], priority="bulk")
            found = future.result(PATIENCE_S).vectors
            np.testing.assert_array_equal(found, vectors_for(["x y", "z"]))
        assert engine.health == "ready"
        assert engine._instance.core.pool.runners == 1
        given = len(runners[0].batches)
        np.testing.assert_array_equal(engine.embed(TEXTS), vectors_for(TEXTS))
    assert len(runners[0].batches) == given == 1


def test_a_text_that_two_runners_were_lost_with_fails_and_the_third_goes_on() -> None:
    runners = [FakeRunner(fatal_on=["x"]) for _ in range(3)]
    with start_engine(runners) as engine:
        with pytest.raises(TextFailed, match="the device is gone"):
            engine.embed("x")
        np.testing.assert_array_equal(engine.embed(TEXTS), vectors_for(TEXTS))
        assert engine.health == "ready"
        assert engine._instance.core.pool.runners == 1
    assert sum(len(runner.batches) > 1 for runner in runners) == 1


def test_with_the_last_runner_the_engine_fails() -> None:
    with start_engine([FakeRunner(fatal_on=["x"]) for _ in range(2)]) as engine:
        with pytest.raises(EngineFailed, match="the device is gone"):
            engine.embed("x")
        assert engine.health == "failed"


def test_a_runner_lost_while_it_is_idle_is_given_nothing_more() -> None:
    runners = [FakeRunner() for _ in range(2)]
    with start_engine(runners) as engine:
        runners[0].lose(ProcessDied("killed"))
        wait_until(lambda: engine._instance.core.pool.runners == 1)
        np.testing.assert_array_equal(engine.embed(TEXTS), vectors_for(TEXTS))
        assert not runners[0].batches
        assert engine.health == "ready"
        runners[1].lose(ProcessDied("killed too"))
        wait_until(lambda: engine.health == "failed")
        with pytest.raises(EngineFailed, match="killed too"):
            engine.embed("more")


def test_prompts_go_on_from_the_caches_that_are_left() -> None:
    runners = [RememberingRunner(blocks=64, fatal_on=["w9"]) for _ in range(3)]
    texts, prompt = [f"w{number}" for number in range(30)], " ".join(map(str, range(40))) + " "
    with start_engine(runners) as engine:
        result = engine.submit(texts, prompt=prompt, priority="bulk").result(PATIENCE_S)
        assert engine.stats().cached_tokens > 0
    good = [row for row in range(30) if row not in result.errors]
    assert 9 not in good
    assert not any(runner.mistakes for runner in runners)
    np.testing.assert_array_equal(result.vectors[good], vectors_for(texts, prompt)[good])


def test_a_pool_gives_away_no_place_on_a_lost_runner() -> None:
    runners = [FakeRunner(depth=2, query_workers=1), FakeRunner(workers=3)]
    pool = WorkerPool(runners, clock=time.monotonic)
    assert (len(pool.workers), pool.runners) == (6, 2)
    assert pool.retire(runners[0])
    assert not pool.retire(runners[0])
    assert (len(pool.workers), pool.runners) == (3, 1)
    places = [pool.place() for _ in range(6)]
    assert {id(place[0]) for place in places if place} == {id(runners[1])}
    assert len({id(place[1]) for place in places if place}) == 3, "they are divided"
    pool.retire(runners[1])
    assert pool.place() is None


# Processes.


def test_an_idle_child_that_is_killed_is_noticed_and_the_other_goes_on() -> None:
    with engine_of(task(), task()) as engine:
        assert engine.info().replicas == 2
        kill(engine, 0)
        wait_until(lambda: engine._instance.core.pool.runners == 1)
        assert (engine.info().replicas, engine.stats().replicas) == (2, 1)
        assert not is_alive(engine.info().processes[0])
        np.testing.assert_array_equal(engine.embed(TEXTS), vectors_for(TEXTS))
        kill(engine, 1)
        wait_until(lambda: engine.health == "failed")
        with pytest.raises(EngineFailed, match=r"process \d+ was killed by SIGKILL"):
            engine.embed("more")


def test_a_batch_with_a_child_that_is_killed_runs_again(tmp_path: Path) -> None:
    tasks = [task(folder=str(tmp_path)), task(folder=str(tmp_path))]
    with engine_of(*tasks) as engine:
        future = engine.submit(["hang", "fine"], priority="bulk")
        hanging = tmp_path / "hanging"
        wait_until(hanging.exists)
        first = int(hanging.read_text())
        hanging.unlink()
        os.kill(first, signal.SIGKILL)
        wait_until(hanging.exists)  # on the other
        second = int(hanging.read_text())
        assert {first, second} == set(engine.info().processes)
        others = engine.submit(TEXTS)
        os.kill(second, signal.SIGKILL)
        for each in (future, others):
            with pytest.raises(EngineFailed, match="SIGKILL"):
                each.result(PATIENCE_S)


def test_a_text_that_kills_its_process_takes_no_more_than_two() -> None:
    with engine_of(task(), task(), task()) as engine:
        result = engine.submit(["die"], priority="bulk").result(PATIENCE_S)
        assert isinstance(result.errors[0].__cause__, ProcessDied)
        np.testing.assert_array_equal(engine.embed(TEXTS), vectors_for(TEXTS))
        assert engine.health == "ready"


def test_a_closed_engine_and_a_dropped_one_leave_nothing_behind() -> None:
    for how in ("closed", "dropped", "not drained"):
        with nothing_left_behind():
            engine = engine_of(task(workers=2))
            pids = engine.info().processes
            future = engine.submit(TEXTS)
            threads = engine._instance.core._threads
            if how == "dropped":
                del engine
                gc.collect()
                for thread in threads:
                    thread.join(PATIENCE_S)
                assert len(future.result(PATIENCE_S)) == len(TEXTS)
            else:
                engine.close(drain=how == "closed")
                del engine
            del threads
            assert not any(map(is_alive, pids))


# Any order of calls, cancellations and deaths.


def random_calls(seed: int, calls: int) -> None:
    """Calls of every kind on three children, of which some are killed at any moment."""
    rng = random.Random(seed)
    engine = engine_of(*[task(workers=rng.randint(1, 2), max_batch_tokens=32) for _ in range(3)])
    pids = list(engine.info().processes)
    kill_at = set(rng.sample(range(calls), rng.randint(1, 3)))
    waiting: list[tuple[list[str], Future[Any]]] = []
    ended: list[Future[Any]] = []
    for number in range(calls):
        if number in kill_at:
            os.kill(pids.pop(rng.randrange(len(pids))), signal.SIGKILL)
        texts = [f"t{rng.randrange(500)} of {seed}" for _ in range(rng.choice([1, 1, 1, 2, 30]))]
        try:
            future = engine.submit(texts, priority=rng.choice(["bulk", "interactive"]))
        except EngineFailed:
            assert not pids
            break
        future.add_done_callback(ended.append)
        waiting.append((texts, future))
        if rng.random() < 0.2:
            rng.choice(waiting)[1].cancel()
    outcomes = [check_outcome(texts, future, has_child=bool(pids)) for texts, future in waiting]
    engine.close()
    assert sorted(map(id, ended)) == sorted(id(future) for _, future in waiting), "exactly once"
    assert not any(map(is_alive, engine.info().processes))
    assert "vectors" in outcomes or not pids, "a child that is left serves"


def check_outcome(texts: list[str], future: Future[Any], *, has_child: bool) -> str:
    try:
        result = future.result(PATIENCE_S)
    except CancelledError:
        return "cancelled"
    except EngineFailed:
        assert not has_child
        return "failed"
    good = [row for row in range(len(texts)) if row not in result.errors]
    expected = vectors_for(texts)
    np.testing.assert_array_equal(result.vectors[good], expected[good])
    for error in result.errors.values():
        assert isinstance(error.__cause__, ProcessDied), "it was with two that were killed"
    return "vectors"


def test_every_call_ends_once_and_with_its_own_vectors_whatever_is_killed() -> None:
    random_calls(seed=1, calls=150)


def test_ten_thousand_calls_end_once_whatever_is_killed() -> None:
    for seed in range(2, 22):
        random_calls(seed=seed, calls=500)


# What only a whole process can show.

PROGRAM = """
import gc, os, signal, sys, threading
sys.path.insert(0, {support!r})
from child_models import engine_of, task
from fakes import vectors_for
import numpy as np
from millpond import Engine, EngineFailed
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
{program}
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(support=SUPPORT, program=program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_parent_that_is_killed_in_the_middle_of_a_batch_leaves_no_child(tmp_path: Path) -> None:
    result = run(f"""
engine = engine_of(task(folder={str(tmp_path)!r}), task(folder={str(tmp_path)!r}))
print(*engine.info().processes, flush=True)
engine.submit("hang")
while not os.path.exists({str(tmp_path / "hanging")!r}):
    threading.Event().wait(0.01)
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert result.returncode == -signal.SIGKILL
    for pid in map(int, result.stdout.split()):
        wait_until_gone(pid)


@pytest.mark.parametrize(
    "how", ["engine.close()", "del engine", "pass", "engine.submit(['a'] * 50)"]
)
def test_a_program_ends_in_peace_however_it_leaves_its_engine(how: str) -> None:
    result = run(f"""
engine = engine_of(task(), task())
print(*engine.info().processes, flush=True)
assert np.array_equal(engine.embed(["a", "b"]), vectors_for(["a", "b"]))
{how}
""")
    assert (result.returncode, result.stderr) == (0, "")
    assert not any(is_alive(int(pid)) for pid in result.stdout.split())


def test_a_forked_child_has_processes_of_its_own_and_the_parent_keeps_its_own() -> None:
    result = run("""
engine = engine_of(task(), task())
own = engine.info().processes
assert engine.embed("a") is not None
pid = os.fork()
if not pid:
    assert engine.health == "ready"
    assert np.array_equal(engine.embed(["a", "b"]), vectors_for(["a", "b"]))
    others = [pid for runner in engine._instance.runners for pid in runner.pids]
    assert not set(own) & set(others), (own, others)
    print(*others, flush=True)
    engine.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert np.array_equal(engine.embed(["a", "b"]), vectors_for(["a", "b"]))
engine.close()
""")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.split()) == 2
    assert not any(is_alive(int(pid)) for pid in result.stdout.split())


def test_children_end_with_the_parent_though_a_fork_of_it_lives_on() -> None:
    result = run(
        """
engine = engine_of(task())
print(*engine.info().processes, flush=True)
if not os.fork():
    os.close(1), os.close(2)
    signal.pause()
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""".replace("if not os.fork():", "pid = os.fork()\nif pid: print(pid, flush=True)\nelse:")
    )
    child, fork, _ = map(int, result.stdout.split())
    try:
        wait_until_gone(child)
        assert is_alive(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_an_interrupt_during_the_load_leaves_no_child(tmp_path: Path) -> None:
    result = run(f"""
from millpond.runner.remote.runner import RemoteRunner
def interrupt():
    while not os.path.exists({str(tmp_path / "hanging")!r}):
        threading.Event().wait(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    RemoteRunner.load_several([[task("hang_at_load", {str(tmp_path)!r})], [task()]])
except KeyboardInterrupt:
    print(*[thread.name for thread in threading.enumerate() if "child" in thread.name])
""")
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")
    wait_until_gone(int((tmp_path / "hanging").read_text()))
