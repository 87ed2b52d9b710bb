"""A runner in a child process does what it does in this one, and ends as it should."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from multiprocessing import spawn
from pathlib import Path

import numpy as np
import pytest
from child_models import task
from fakes import (
    PATIENCE_S,
    FakeRunner,
    FakeTokenizer,
    fake_spec,
    token_ids,
    vectors_for,
)
from left_behind import is_alive, nothing_left_behind, wait_until_gone

from millpond import (
    Engine,
    EngineError,
    EngineFailed,
    InvalidOption,
    ModelNotFound,
    ProcessDied,
    TextFailed,
)
from millpond.runner.limits import Limits
from millpond.runner.remote.runner import RemoteRunner
from millpond.runner.remote.task import Rank

TEXTS = [f"text {number} of {number % 7}" for number in range(200)]


def engine_on(*runners: RemoteRunner) -> Engine:
    here = FakeRunner()
    return Engine.with_runner(runners, fake_spec(here), tokenizers=[FakeTokenizer(here)])


def test_it_says_of_itself_what_its_child_says(runner: RemoteRunner) -> None:
    here = FakeRunner(workers=2, query_workers=1)
    assert runner.limits == Limits(
        max_batch_tokens=64, min_batch_tokens=64, workers=2, query_workers=1
    )
    assert tuple(runner.routes) == here.routes
    assert tuple(runner.shapes) == tuple(here.shapes)
    assert (runner.device_name, runner.dtype_name) == ("fake", "float32")
    assert runner.prefix_cache_config is None
    assert not runner.can_run_inline(1)
    assert runner.pids == (runner.facts.extra,)
    assert runner.pids[0] != os.getpid()
    assert str(runner.pids[0]) in repr(runner)


def test_every_text_has_its_own_vector(runner: RemoteRunner) -> None:
    with engine_on(runner) as engine:
        futures = [engine.submit(TEXTS[:n], priority="bulk") for n in range(1, 100, 7)]
        np.testing.assert_array_equal(engine.embed("a query"), vectors_for(["a query"])[0])
        for future in futures:
            result = future.result(PATIENCE_S)
            np.testing.assert_array_equal(result.vectors, vectors_for(TEXTS[: len(result)]))


def test_errors_come_across_as_they_are(runner: RemoteRunner) -> None:
    with engine_on(runner) as engine:
        texts = ["fine", "a bad one", "too huge", "nan", "fine too"]
        result = engine.submit(texts, priority="bulk").result(PATIENCE_S)
    with Engine.with_runner(
        here := FakeRunner(raises_on=["bad"], memory_error_on=["huge"], not_finite_on=["nan"]),
        fake_spec(here),
        tokenizers=[FakeTokenizer(here)],
    ) as engine:
        expected = engine.submit(texts, priority="bulk").result(PATIENCE_S)
    np.testing.assert_array_equal(result.vectors[[0, 4]], vectors_for(["fine", "fine too"]))
    assert sorted(result.errors) == sorted(expected.errors) == [1, 2, 3]
    for row, error in result.errors.items():
        assert type(error) is type(expected.errors[row])
        assert str(error) == str(expected.errors[row])
    cause = result.errors[1].__cause__
    assert type(cause) is RuntimeError
    assert "child_models.py" in str(cause.__cause__), "where it was raised"


def test_several_rows_a_text_and_batches_larger_than_expected() -> None:
    ragged = RemoteRunner.load([task(kind="ragged", max_batch_tokens=4)])
    here = FakeRunner()
    batches = []
    executor_runner = ragged

    def embed(text: str) -> np.ndarray:
        engine = Engine.with_runner(here, fake_spec(here), tokenizers=[FakeTokenizer(here)])
        here.launch = lambda batch: batches.append(batch) or FakeRunner.launch(here, batch)  # type: ignore[method-assign]
        engine.embed(text)
        engine.close()
        rows = executor_runner.collect(executor_runner.launch(batches[-1]))
        return rows[0]  # type: ignore[no-any-return]

    for words in (3, 50_000, 2):
        text = " ".join(map(str, range(words)))
        expected = np.outer(token_ids(text), np.arange(1, 9)).astype(np.float32)
        np.testing.assert_array_equal(embed(text), expected)
    ragged.close()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModelNotFound("there is no such model"), "there is no such model"),
        (InvalidOption("dtype='x': choose another"), "choose another"),
    ],
)
def test_a_load_that_fails_raises_the_same_error_and_ends_all(
    error: Exception, message: str, tmp_path: Path
) -> None:
    with nothing_left_behind():
        with pytest.raises(type(error), match=message) as caught:
            RemoteRunner.load_several(
                [[task("hang_at_load", str(tmp_path))], [task("raise_at_load", error)]]
            )
        assert type(caught.value) is type(error)
        del caught


def test_a_child_that_dies_while_it_loads_says_how() -> None:
    with pytest.raises(ProcessDied, match=r"was killed by SIGKILL; it last wrote:\n.*no room"):
        RemoteRunner.load([task("die_at_load")])


def test_a_process_that_cannot_be_started_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spawn, "_python_exe", "/no/such/python")
    with nothing_left_behind(), pytest.raises(EngineError, match="could not be started"):
        RemoteRunner.load([task()])


def test_a_program_that_is_no_python_starts_no_copy_of_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EngineError, match="set_executable"):
        RemoteRunner.load([task()])


def test_ranks_launch_in_the_same_order_and_the_first_answers(tmp_path: Path) -> None:
    tasks = [
        replace(
            task(kind="noted", folder=str(tmp_path), workers=3), rank=Rank(rank=n, world_size=2)
        )
        for n in range(2)
    ]
    remote = RemoteRunner.load(tasks)
    assert len(set(remote.pids)) == 2
    with engine_on(remote) as engine:
        futures = [engine.submit([text], priority="bulk") for text in [*TEXTS[:50], "a bad one"]]
        for text, future in zip(TEXTS[:50], futures, strict=False):
            np.testing.assert_array_equal(future.result(PATIENCE_S).vectors, vectors_for([text]))
        assert isinstance(futures[-1].result(PATIENCE_S).errors[0], TextFailed)
        remote.free_memory()
        found = [(tmp_path / f"launched-{n}").read_text().splitlines() for n in range(2)]
        assert len(found[0]) >= 3
        assert found[0] == found[1]
        os.kill(remote.pids[1], signal.SIGKILL)
        while engine.health == "ready":
            threading.Event().wait(0.01)
        with pytest.raises(EngineFailed, match=f"process {remote.pids[1]} was killed by SIGKILL"):
            engine.embed("more")
    remote.close()
    assert not any(map(is_alive, remote.pids))


def test_what_a_child_logs_is_logged_here_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="millpond"):
        remote = RemoteRunner.load_several(
            [[task(logs="two weights were left out")], [replace(task(logs="two"), repeats=True)]]
        )
    assert [(record.name, record.message) for record in caplog.records] == [
        ("millpond.somewhere", "two weights were left out")
    ]
    for each in remote:
        each.close()


def test_a_child_killed_in_the_middle_of_a_batch_fails_its_callers_at_once(tmp_path: Path) -> None:
    remote = RemoteRunner.load([task(folder=str(tmp_path))])
    with engine_on(remote) as engine:
        future = engine.submit("hang")
        hanging = tmp_path / "hanging"
        while not hanging.exists():
            threading.Event().wait(0.01)
        os.kill(remote.pids[0], signal.SIGKILL)
        with pytest.raises(EngineFailed, match="was killed by SIGKILL"):
            future.result(PATIENCE_S)
        assert isinstance(future.exception().__cause__, ProcessDied)
        assert engine.health == "failed"
        with pytest.raises(EngineFailed):
            engine.embed("more")
    assert not is_alive(remote.pids[0])


def test_its_last_words_are_in_the_error() -> None:
    engine = engine_on(RemoteRunner.load([task()]))
    with engine, pytest.raises(EngineFailed, match="the last words"):
        engine.embed("die")


def test_a_child_whose_device_is_lost_is_no_good() -> None:
    engine = engine_on(RemoteRunner.load([task()]))
    with engine, pytest.raises(EngineFailed, match="FakeDeviceLost"):
        engine.embed("fatal")


def test_closing_and_collecting_leave_nothing_behind() -> None:
    gc.collect()
    before = set(threading.enumerate())
    with nothing_left_behind():
        closed, collected = RemoteRunner.load_several([[task()], [task()]])
        pids = closed.pids + collected.pids
        closed.close()
        closed.close()
        del closed, collected
        gc.collect()
        for pid in pids:
            wait_until_gone(pid)
        for thread in set(threading.enumerate()) - before:
            thread.join(PATIENCE_S)


LOAD_AND = """
import os, signal, sys
sys.path.insert(0, {support!r})
from child_models import task
from millpond.runner.remote.runner import RemoteRunner
runner = RemoteRunner.load([task()])
print(*runner.pids, flush=True)
{then}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "then",
    ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()", "os._exit(3)", "os.abort()"],
)
def test_a_child_ends_with_its_parent_however_that_ends(then: str) -> None:
    program = LOAD_AND.format(support=str(Path(__file__).parents[2] / "support"), then=then)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    wait_until_gone(int(result.stdout))
    if "exit" in then:
        assert result.stderr == ""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_for_the_whole_group_are_the_parents_to_act_on(
    runner: RemoteRunner, name: str
) -> None:
    assert os.getpgid(runner.pids[0]) != os.getpgid(0)
    os.kill(runner.pids[0], getattr(signal, name))
    with engine_on(runner) as engine:
        np.testing.assert_array_equal(engine.embed(TEXTS[:3]), vectors_for(TEXTS[:3]))
