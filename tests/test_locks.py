"""Gates, futures and locks by themselves."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import count
from pathlib import Path

import pytest
from interrupts import interrupt

import millpond
from millpond.locks import Gate, SteadyFuture, fork_safe

PATIENCE_S = 30.0


def test_a_gate_stays_open_until_its_thread_is_through() -> None:
    gate = Gate()
    assert repr(gate) == "Gate(closed)"
    gate.open()
    gate.open()
    assert repr(gate) == "Gate(open)"
    gate.wait()
    assert repr(gate) == "Gate(closed)"
    gate.wait(0.0)


def test_a_gate_lets_a_waiting_thread_through() -> None:
    gate = Gate()
    waiting = threading.Thread(target=gate.wait)
    waiting.start()
    gate.open()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_a_future_whose_waiting_thread_is_interrupted_anywhere_can_be_ended() -> None:
    for number in count(1):
        future: SteadyFuture[int] = SteadyFuture()
        ending = threading.Timer(0.002, future.set_result, [7])
        ending.start()
        try:
            with interrupt(number, within=lambda file: "timer" not in file) as was_reached:
                assert future.result(PATIENCE_S) == 7
        except KeyboardInterrupt:
            pass
        ending.join(PATIENCE_S)
        assert not ending.is_alive(), number
        assert future.result(0) == 7
        if not was_reached():
            break
    assert number > 5


def test_a_future_is_waited_for_no_longer_than_said() -> None:
    future: SteadyFuture[int] = SteadyFuture()
    with pytest.raises(FutureTimeout):
        future.result(0.0)
    with pytest.raises(FutureTimeout):
        future.exception(0.001)
    future.set_result(1)
    assert future.result(0.0) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_named_lock_is_free_in_a_forked_child() -> None:
    lock, again = fork_safe(threading.Lock()), fork_safe(threading.RLock())
    with lock, again:
        child = os.fork()
        if child == 0:
            os._exit(0 if lock.acquire(blocking=False) and again.acquire(blocking=False) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lock.locked()


SOURCE = Path(millpond.__file__).parent
MAKES_A_LOCK = re.compile(r"(?<!\w)(Lock|RLock|Condition|SteadyCondition)\(")
# Where a lock is made that `fork_safe` does not renew, and why a fork leaves nobody waiting for it.
NOT_RENEWED = {
    ("locks.py", 'self._lock = threading.Lock()'): "a gate is opened by release, whoever closed it",
    ("locks.py", "self._lock: Any = threading.RLock()"): "of a future's: see is_done_in_child",
    ("locks.py", "gate = threading.Lock()"): "of one waiting thread, which stays behind",
    ("locks.py", "self._condition: Any = SteadyCondition()"): "see is_done_in_child",
    ("engine/calls/base.py", "held = threading.Lock()"): "forgotten in the child",
    ("engine/calls/progress.py", "self._lock = threading.Lock()"): "of one call",
    ("engine/core/executor.py", "self._changed = threading.Condition()"): "of a core's threads",
    ("engine/calls/stream.py", "self._turn = threading.Lock()"): "of one thread that iterates",
    ("scheduler/request.py", "self._result_lock = threading.Lock()"): "of one call",
    ("cli/files/report.py", "self._lock = threading.Lock()"): "the commands do not fork",
    ("cpu/preemption.py", "self._changed = SteadyCondition()"): "made anew in a child",
    ("runner/remote/runner.py", "self._order = threading.Lock() if len(ranks) > 1 else None"):
        "a fork has others",
    ("runner/remote/child.py", "self._changed = threading.Condition()"): "it does not fork",
    ("runner/remote/child.py", "self._sends = threading.Lock()"): "it does not fork",
}  # fmt: skip


def unsafe_locks() -> set[tuple[str, str]]:
    """Lines that make a lock which stays held in a forked child."""
    return {
        (path.relative_to(SOURCE).as_posix(), line.partition("  #")[0].strip())
        for path in SOURCE.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if MAKES_A_LOCK.search(line) and "fork_safe(" not in line
    }


def test_a_lock_that_a_fork_can_orphan_is_renewed_or_said_to_need_nothing() -> None:
    assert unsafe_locks() == set(NOT_RENEWED)


def test_a_future_has_what_the_standard_library_s_own_sets() -> None:
    assert vars(SteadyFuture()).keys() == vars(Future()).keys()
    assert SteadyFuture()._state == Future()._state
