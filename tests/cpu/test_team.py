"""OpenMP's threads of a thread: kept apart during a pass, and no more than there is room for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from millpond.cpu import team
from millpond.cpu.openmp import limited_threads, openmp_library

pytestmark = pytest.mark.skipif(
    openmp_library() is None or not team._is_gnu(openmp_library()),
    reason="torch has no OpenMP of GNU's here",
)


@pytest.fixture(autouse=True)
def no_other_teams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_teams", type(team._teams)())
    monkeypatch.setattr(team, "_own", team._OfThread())


def elsewhere(work: Callable[[], Any]) -> Any:
    """What a new thread finds."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def members(count: int) -> Iterator[int]:
    assert team._own.team is not None
    for member in team._own.team.members(openmp_library(), count):
        yield member.thread_id


def test_the_others_of_a_team_keep_off_the_callers_processor_during_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed = os.sched_getaffinity(0)
    taken = min(allowed)  # the system may move the caller at any moment, so it is said to be there
    with limited_threads(3):
        first, second = members(3)
    monkeypatch.setattr(team, "_libc", lambda: SimpleNamespace(sched_getcpu=lambda: taken))
    with team.apart(openmp_library(), 3):
        during = [os.sched_getaffinity(member) for member in (first, second)]
    if len(allowed) > 1:
        assert during == [allowed - {taken}] * 2
    assert [os.sched_getaffinity(member) for member in (first, second)] == [allowed] * 2
    assert threading.get_native_id() not in (first, second)


def test_a_pass_that_an_interrupt_ended_early_keeps_nobody_off_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted_pass() -> None:
        with team.apart(openmp_library(), 3):
            pass

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    allowed = os.sched_getaffinity(0)
    with limited_threads(3):
        found = list(members(3))
    monkeypatch.setattr(team, "_libc", lambda: SimpleNamespace(sched_getcpu=lambda: min(allowed)))
    with monkeypatch.context() as patch:
        patch.setattr(team._Team, "end_pass", interrupt)
        with pytest.raises(KeyboardInterrupt):
            interrupted_pass()
    if len(allowed) > 1:
        assert [os.sched_getaffinity(member) for member in found] == [allowed - {min(allowed)}] * 2
    with team.apart(openmp_library(), 3):
        pass
    assert [os.sched_getaffinity(member) for member in found] == [allowed] * 2


def test_where_there_is_one_processor_nobody_is_kept_off_it() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    try:
        os.sched_setaffinity(0, {one})
        member = team._Member(threading.get_native_id())
        member.keep_off(one)
        assert os.sched_getaffinity(0) == {one}
        member.let_go()
    finally:
        os.sched_setaffinity(0, before)


def test_a_thread_that_has_ended_is_let_be() -> None:
    member = team._Member(elsewhere(threading.get_native_id))
    member.keep_off(0)
    member.let_go()


def test_threads_that_are_gone_are_asked_for_again() -> None:
    with limited_threads(2):
        (known,) = members(2)
        assert team._own.team is not None
        (member,) = team._own.team.members(openmp_library(), 2)
        member.path = Path("/proc/self/task/0")  # no thread has it
        assert list(members(2)) == [known]


@pytest.fixture
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_runnable", lambda: 1)


@pytest.mark.usefixtures("idle_machine")
def test_there_is_room_for_as_many_threads_as_there_are_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(team, "_processors", lambda: 3)
    openmp = openmp_library()
    assert team.has_room(openmp, 3)
    assert not team.has_room(openmp, 4)
    taken, done = threading.Event(), threading.Event()

    def hold_two() -> None:
        with limited_threads(2):
            taken.set()
            done.wait()

    holder = threading.Thread(target=hold_two)
    holder.start()
    taken.wait()
    assert team.has_room(openmp, 2)
    assert not team.has_room(openmp, 3)
    done.set()
    holder.join()
    del holder
    assert team.has_room(openmp, 3)  # a team ends with its thread


@pytest.mark.usefixtures("idle_machine")
def test_whoever_has_a_team_has_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_processors", lambda: 2)
    openmp = openmp_library()
    with limited_threads(2):
        pass
    team._team()._alone_until = 0.0  # whatever else ran meanwhile
    assert team.has_room(openmp, 2)
    assert not elsewhere(lambda: team.has_room(openmp, 2))


FORK = """
import os, signal, torch
from millpond.cpu.openmp import limited_threads

def on_two_threads():
    with limited_threads(2):
        return torch.ones(2**20).exp().sum()

on_two_threads()
child = os.fork()
if not child:
    signal.alarm(30)  # ends it with another status
    on_two_threads()
    os._exit(0)
raise SystemExit(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_takes_several_threads_too() -> None:
    """OpenMP by itself waits there for threads that stayed behind."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


class OtherOpenMP:
    """LLVM's, which has GNU's functions too."""

    GOMP_parallel = omp_pause_resource_all = kmp_malloc = None


def test_of_another_openmp_nothing_is_known() -> None:
    assert not team.has_room(OtherOpenMP(), 2)
    with team.apart(OtherOpenMP(), 2):
        pass


class Clock:
    """Time, threads that want to run, and how long a team's have waited, as a test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.runnable, self.waited_s = 100.0, 1, 0.0
        monkeypatch.setattr(team, "time", SimpleNamespace(perf_counter=lambda: self.now_s))
        monkeypatch.setattr(team, "_runnable", lambda: self.runnable)
        monkeypatch.setattr(team, "_processors", lambda: 2)
        self.member = team._Member(threading.get_native_id())
        monkeypatch.setattr(self.member, "waited_s", lambda: self.waited_s)

    def run_pass(self, of: team._Team, waited_s: float) -> None:
        self.member.keep_off(-1)
        self.waited_s += waited_s
        of.end_pass([self.member])


def test_a_second_thread_needs_a_processor_that_nobody_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, own = Clock(monkeypatch), team._Team()
    assert own.has_processors(2)
    clock.runnable = 2  # the calling thread, and another process
    assert not own.has_processors(2)


def test_right_after_a_pass_it_is_the_team_itself_that_spins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, own = Clock(monkeypatch), team._Team()
    clock.run_pass(own, 0.0001)
    clock.runnable = 2
    assert own.has_processors(2)
    clock.now_s += team.SPIN_S
    assert not own.has_processors(2)


def test_a_team_that_waited_leaves_the_processor_to_others_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, own = Clock(monkeypatch), team._Team()
    clock.run_pass(own, 0.0001)
    clock.run_pass(own, 0.01)
    assert not own.has_processors(2)
    clock.now_s += team.WORKS_ALONE_TIMES * 0.01 + 0.001
    assert own.has_processors(2)


def test_what_a_thread_waited_between_two_passes_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, own = Clock(monkeypatch), team._Team()
    clock.waited_s += 1.0  # such as in passes on more threads
    clock.run_pass(own, 0.0001)
    assert own.has_processors(2)


def test_linux_tells_what_is_asked() -> None:
    assert team._runnable() >= 1
    assert team._Member(threading.get_native_id()).waited_s() >= 0
