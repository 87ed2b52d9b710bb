"""The GPU benchmark's report, its time, and its order, on a machine without one."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu import run as gpu
from benchmarks.gpu.checks import RunningTests, report_tests
from benchmarks.gpu.clock import Clock, OutOfTime
from benchmarks.gpu.figures.callers import CALLERS, in_threads, on_a_loop
from benchmarks.gpu.figures.contest import FEWEST_ROUNDS, alternated, operations_per_token, ratio_of
from benchmarks.gpu.models.shapes import SHAPES
from benchmarks.gpu.report import Report

pytestmark = pytest.mark.slow


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path, {"gpu": "made up"}, Clock(100, now=lambda: 7.0))


@pytest.mark.parametrize(
    ("kind", "model", "values", "reached"),
    [
        ("passages", "bge-large", {"ratio": 3.1}, True),
        ("passages", "bge-large", {"ratio": 2.9}, False),
        ("chunks", "Qwen3-0.6B", {"ratio": 2.0}, True),
        ("query", "MiniLM-L6", {"ratio": 0.34}, False),
        ("query", "MiniLM-L6", {"ratio": 0.3}, True),
        ("callers", "bge-base", {"ratio": 9.9}, False),
        ("matrix", "bge-large", {"millpond": 0.51}, True),
        ("matrix", "Qwen3-0.6B", {"millpond": 0.4}, False),
        ("matrix", "MiniLM-L6", {"millpond": 0.18}, None),
        ("batch_invariant", "bge-base", {"ratio": 1.2}, True),
        ("prefixes", "Qwen3-0.6B", {"ratio": 1.9}, False),
        ("nothing shared", "Qwen3-0.6B", {"ratio": 0.98}, True),
        (None, "bge-large", {"ratio": 1.0}, None),
    ],
)
def test_a_figure_is_judged_by_its_aim(
    report: Report, kind: str | None, model: str, values: Any, reached: bool | None
) -> None:
    report.figure(model, "a figure", kind=kind, **values)
    assert report.figures[0].get("reached") == reached
    row = next(line for line in report.markdown().splitlines() if f"| {model} |" in line)
    assert ("**missed**" in row, "| reached |" in row) == (reached is False, reached is True)


def test_what_fails_or_hangs_or_has_no_time_stops_nothing(report: Report) -> None:
    assert report.attempt("good", lambda: 3) == 3

    def fails() -> None:
        raise ValueError("no such kernel")

    report.attempt("bad", fails)
    report.attempt("endless", threading.Event().wait, limit_s=0.01)
    report.attempt("large", fails, needs_s=1000)
    written = json.loads((report.folder / "gpu.json").read_text())
    assert [error.split(":")[0] for error in written["errors"]] == ["bad", "endless"]
    assert written["left_out"] == ["large: 100 s were left"]
    page = (report.folder / "gpu.md").read_text()
    assert "- error: bad: ValueError: no such kernel" in page
    assert "- left out: large" in page


def test_the_end_of_the_time_ends_a_step() -> None:
    clock = Clock(0.05)
    with pytest.raises(OutOfTime), clock.limit(60):
        threading.Event().wait()
    assert clock.left < 0
    with Clock(100).limit(60):
        pass  # and the alarm is off
    assert "gone=0" in repr(Clock(100))


def test_in_another_thread_there_is_no_alarm() -> None:
    done = []

    def work() -> None:
        with Clock(100).limit(60):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


PYTEST_OUTPUT = """
[gw0] [  2%] PASSED tests/test_gpu.py::test_one[{'dtype': 'float32'}]
tests/test_gpu.py::test_two
[gw1] [  4%] FAILED tests/test_gpu.py::test_two
tests/test_gpu.py::test_three[8] SKIPPED (needs two CUDA devices) [ 50%]
FAILED tests/test_gpu.py::test_two - AssertionError: PASSED
"""


def test_the_tests_are_counted_and_what_failed_is_named(report: Report) -> None:
    report_tests(report, PYTEST_OUTPUT)
    passed, skipped = report.checks
    assert (passed["value"], passed["passed"]) == (1, False)
    assert skipped["value"] == 1
    assert report.errors == ["test failed: tests/test_gpu.py::test_two"]


def test_no_tests_at_all_are_an_error(report: Report) -> None:
    report_tests(report, "ERROR: no such file")
    assert not report.checks[0]["passed"]
    assert "none ran" in report.errors[0]


def test_tests_that_take_too_long_are_ended(report: Report, tmp_path: Path) -> None:
    output = (tmp_path / "gpu_tests.txt").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-c", "print('a.py::b PASSED', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=output,
        start_new_session=True,
    )
    while not Path(output.name).read_bytes():
        assert process.poll() is None
    RunningTests(process, output).end(report, wait_s=0.01)
    assert process.returncode != 0
    assert report.checks[0]["value"] == 1
    assert report.left_out
    assert process.stdin is not None
    process.stdin.close()


def test_rounds_are_fewer_where_they_take_long() -> None:
    calls = []
    times = alternated(lambda: calls.append("a"), lambda: calls.append("b"), rounds=9, allowed_s=0)
    assert calls == ["a", "b"] * FEWEST_ROUNDS
    assert [len(column) for column in times] == [FEWEST_ROUNDS] * 2
    assert ratio_of([1, 2, 1], [3, 4, 2]) == 2


def test_callers_ask_again_when_they_are_answered() -> None:
    asked: list[str] = []

    async def ask(query: str) -> None:
        asked.append(query)

    queries = [str(number) for number in range(2 * CALLERS)]
    assert len(on_a_loop(queries, ask).latencies_s) == len(queries)
    assert sorted(asked) == sorted(queries)
    seen = in_threads(queries, asked.append)
    assert len(asked) == 2 * len(seen.latencies_s) == 2 * len(queries)


def test_operations_are_those_of_the_products() -> None:
    large = operations_per_token(SHAPES["bge-large"], 512)
    assert large == 24 * (8 * 1024**2 + 4 * 1024 * 4096 + 4 * 512 * 1024)


def options_of(*arguments: str) -> argparse.Namespace:
    return gpu.parsed(["folder", "--device", "cpu", *arguments])


def measured(
    report: Report, monkeypatch: pytest.MonkeyPatch, name: str, following: int, *arguments: str
) -> list[tuple[str, int]]:
    """Which figures are begun of a model, and in how many rounds each."""
    begun: list[tuple[str, int]] = []

    def note(figure: str) -> None:
        begun.append((figure, contest.rounds))

    figures = {figure: (lambda figure=figure: note(figure)) for figure in gpu.FIGURES}
    monkeypatch.setattr(gpu, "figures_of", lambda _: figures)
    contest: Any = SimpleNamespace(name=name, shape=SHAPES[name], rounds=0)
    plan = gpu.Plan(report, report.clock, options_of(*arguments), None)  # type: ignore[arg-type]
    plan._measure(contest, following)
    return begun


def test_the_order_of_figures(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    report.clock = Clock(1000)
    for name, first, absent in (
        ("bge-large", ["checks", "passages"], "prefixes"),
        ("Qwen3-0.6B", ["checks", "passages"], None),
        ("bge-base", ["checks", "chunks", "batch_invariant", "passages"], "prefixes"),
    ):
        begun = [figure for figure, _ in measured(report, monkeypatch, name, 1)]
        assert begun[: len(first)] == first
        assert set(begun) == {*gpu.FIGURES} - {absent}
        queries = min(begun.index(figure) for figure in ("query", "callers", "beside"))
        bulk = [f for f in begun if f in ("passages", "chunks", "matrix", "defaults", "flash")]
        assert all(begun.index(figure) < queries for figure in bulk), "queries keep batches short"


def test_with_little_time_left_extras_and_rounds_go_first(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.clock = Clock(100)
    begun = dict(measured(report, monkeypatch, "bge-large", 2))
    assert set(begun) == {*gpu.FIGURES} - {"prefixes", *gpu.EXTRAS}
    assert set(begun.values()) == {FEWEST_ROUNDS}
    report.clock = Clock(5)
    assert not measured(report, monkeypatch, "bge-large", 0)
    assert len(report.left_out) > len(gpu.FIGURES)


def test_there_is_time_for_every_figure_that_is_aimed_at() -> None:
    """By what they are expected to take; the extras have what is over."""
    wanted = [figure for figure in gpu.FIGURES if figure not in (*gpu.EXTRAS, "prefixes")]
    of_a_model = sum(gpu.NEEDS_S.get(figure, gpu.NEEDS_S_OTHERS) for figure in wanted)
    together = len(gpu.MODELS) * of_a_model + gpu.NEEDS_S["prefixes"] + gpu.TESTS_WAIT_S
    assert together < gpu.SECONDS < 8 * 60


def test_what_is_asked_for_is_what_there_is() -> None:
    options = options_of("--models", "MiniLM-L6", "--figures", "chunks", "profile")
    assert (options.models, options.figures) == (["MiniLM-L6"], ["chunks", "profile"])
    assert set(gpu.MODELS) < set(SHAPES)
    assert set(gpu.shapes(options)) == set(SHAPES)
    assert time.perf_counter() > gpu.STARTED
