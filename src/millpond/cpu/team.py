"""OpenMP's threads of a calling thread, its team: whether one may be made, and where it wakes.

GNU's OpenMP, which torch brings on Linux, keeps a team for every thread that takes several. Two
things decide whether a short pass gains from a second thread:

- While all teams of a process have no more threads than it has processors, their threads wait for
  each other in a loop. With one thread more they sleep at once, in every operator of every team
  (`gomp_throttled_spin_count` in libgomp's source), and a short pass on two threads takes longer
  than on one. So a short pass takes several only where there is room for its team (`has_room`).
- A thread that is woken after a pause may be put on the processor of the thread that woke it, which
  spins until both are done: to Linux an idle processor of a virtual machine looks taken
  (`available_idle_cpu`). That costs 10 ms and more. So during a pass the other threads of a team
  are kept off the processor of the calling one (`apart`).

And where the second processor is not free, the first waits for it, up to a tenth of a second beside
two busy processes. So `has_room` asks how many threads of the machine want to run, and a team that
waited for a processor in its last pass takes no short one for a while.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any
from weakref import WeakSet, WeakValueDictionary

__all__ = ["apart", "end", "has_room", "this_processor"]


# After a pass its threads spin for about 10 ms, and want to run: until then they count themselves.
SPIN_S = 0.01
MOST_WAITED_S = 0.001  # a thread that is woken on an idle processor waits some 0.05 ms for it
OMP_PAUSE_SOFT = 1  # by the OpenMP specification, 5.0
WORKS_ALONE_TIMES = 20  # as long as it waited: a twentieth of the time is lost at most


class _Member:
    """A thread of a team that is not the calling one."""

    def __init__(self, thread_id: int) -> None:
        self.thread_id = thread_id  # the operating system's
        self.path = f"/proc/self/task/{thread_id}"
        self._processors: set[int] = set()  # that it may run on between passes
        self._kept_to: set[int] | None = None  # where a pass has it run
        self._waited_s = 0.0  # before the pass

    def keep_off(self, processor: int) -> None:
        """For a pass, have it run on another of its processors, if it has more."""
        self._waited_s = self.waited_s()
        with suppress(OSError):  # the thread is gone, or the system does not allow it
            processors = os.sched_getaffinity(self.thread_id)
            if processors != self._kept_to:  # or an interrupt kept its last pass from letting it go
                self._processors = processors
            self._kept_to = (self._processors - {processor}) or self._processors
            os.sched_setaffinity(self.thread_id, self._kept_to)

    def let_go(self) -> float:
        """Let it run where it did before. How long it waited for a processor in the pass."""
        if self._kept_to is not None:
            with suppress(OSError):
                os.sched_setaffinity(self.thread_id, self._processors)
            self._kept_to = None
        return self.waited_s() - self._waited_s

    def waited_s(self) -> float:
        """How long it has been ready to run and had no processor, in all; 0 if Linux keeps no
        account of it ("/proc/<pid>/schedstat" in proc(5))."""
        try:
            return int(_read(f"{self.path}/schedstat").split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0


class _Team:
    """What a thread takes its passes on."""

    def __init__(self) -> None:
        self.size = 1
        self._members: dict[int, Sequence[_Member]] = {}
        self._quick_until = self._alone_until = -float("inf")

    def members(self, openmp: Any, count: int) -> Sequence[_Member]:
        """The others of the first `count` threads."""
        found = self._members.get(count)
        if found is None or not all(os.path.exists(member.path) for member in found):
            found = self._members[count] = _ask_members(openmp, count)
        return found

    def end_pass(self, members: Sequence[_Member]) -> None:
        """Let its threads run anywhere again, and see whether they had to wait."""
        waited_s = sum([member.let_go() for member in members])
        now_s = time.perf_counter()
        if waited_s > MOST_WAITED_S:
            self._quick_until, self._alone_until = now_s, now_s + WORKS_ALONE_TIMES * waited_s
        else:
            self._quick_until = now_s + SPIN_S

    def has_processors(self, count: int) -> bool:
        """Whether the machine has processors for `count` threads that want to run."""
        now_s = time.perf_counter()
        if now_s < self._quick_until:
            return True
        return now_s >= self._alone_until and _runnable() - 1 + count <= _processors()


class _OfThread(threading.local):
    team: _Team | None = None


_own = _OfThread()
_teams: WeakSet[_Team] = WeakSet()  # one ends with its thread
_members: WeakValueDictionary[int, _Member] = WeakValueDictionary()  # of teams, by thread


def _team() -> _Team:
    """The calling thread's."""
    if _own.team is None:
        _own.team = _Team()
        _teams.add(_own.team)
    return _own.team


@contextmanager
def apart(openmp: Any, count: int) -> Iterator[None]:
    """Keep the team's others off the calling thread's processor, for a pass on `count` threads."""
    if count == 1 or not _is_gnu(openmp):
        yield
        return
    team = _team()
    team.size = max(team.size, count)
    members = team.members(openmp, count)
    here = this_processor()
    try:
        for member in members:
            member.keep_off(here)
        yield
    finally:
        team.end_pass(members)


def has_room(openmp: Any, count: int) -> bool:
    """Whether a short pass of the calling thread gains from `count` threads now."""
    if not _is_gnu(openmp):
        return False
    own = _team()
    others = sum(team.size - 1 for team in list(_teams)) - (own.size - 1)
    fits = own.size >= count or others + count <= _processors()
    return fits and own.has_processors(count)


def end(openmp: Any) -> None:
    """End the calling thread's team. The next pass on several threads makes another one."""
    if _is_gnu(openmp):
        openmp.omp_pause_resource_all(OMP_PAUSE_SOFT)
        _own.team = None


@cache
def _is_gnu(openmp: Any) -> bool:
    """Whether it is GNU's on Linux, of GCC 9 or later. LLVM's has its functions, and more."""
    needed = "GOMP_parallel", "omp_pause_resource_all"
    is_gnu = all(hasattr(openmp, name) for name in needed) and not hasattr(openmp, "kmp_malloc")
    return is_gnu and hasattr(os, "sched_setaffinity")


def this_processor() -> int:
    """The one that the calling thread runs on, by its number; -1 where nothing says so."""
    found: int = _libc().sched_getcpu() if hasattr(os, "sched_setaffinity") else -1
    return found


@cache
def _libc() -> Any:
    return ctypes.PyDLL(None)  # calls of about a microsecond: the interpreter's lock is kept


@cache
def _processors() -> int:
    return len(os.sched_getaffinity(os.getpid()))


def _runnable() -> int:
    """Threads of the machine that run or want to, the calling one among them (proc(5))."""
    try:
        return int(_read("/proc/loadavg").split()[3].partition(b"/")[0])
    except (OSError, IndexError, ValueError):
        return 1


def _read(path: str) -> bytes:
    """A short file of the kernel's, for which `open` takes longer than reading it."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 512)
    finally:
        os.close(file)


def _ask_members(openmp: Any, count: int) -> Sequence[_Member]:
    found: list[int] = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda _: found.append(threading.get_native_id())
    )
    openmp.GOMP_parallel(function, None, count, 0)
    others = set(found) - {threading.get_native_id()}
    return [_members.setdefault(thread_id, _Member(thread_id)) for thread_id in others]
