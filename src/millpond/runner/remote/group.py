"""`ChildGroup`: the children that hold one model together, started, watched and ended.

That is one child, or a rank each of several; when one ends, all of them do. A thread of the group's
own starts them, reads what they say, and sees their end. It is never interrupted, so a child that
has been started is always known, whatever happens to the thread that waits for its model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...errors import EngineError, ProcessDied
from .channel import Port
from .errors import arrived
from .messages import ConnectionEnded, receive_message
from .process import ChildProcess
from .task import ChildTask, RunnerFacts

__all__ = ["ChildGroup", "load_groups"]

PROGRAM = "millpond.runner.remote.child"

Lost = Callable[[Exception], object]

_watches: weakref.WeakSet[Watch] = weakref.WeakSet()  # of this process; for a fork


class Watch:
    """The thread of a group, and what it shares with others by single assignments."""

    def __init__(self, tasks: Sequence[ChildTask], tell: Callable[[Any], object]) -> None:
        """`tell` is given the facts of all ranks, or the error that came instead."""
        self._tasks = tasks
        self._tell = tell
        self._facts: dict[int, RunnerFacts] = {}
        self.children: list[ChildProcess] = []
        self.ports: list[Port] = []
        self.error: Exception | None = None
        self.ended = threading.Event()
        self.on_lost: Lost | None = None
        self._is_closing = False
        self.thread = threading.Thread(target=self._run, name="millpond-child", daemon=True)
        _watches.add(self)

    def end(self) -> None:
        """Have the children end. Any thread may, a finalizer too, and more than once."""
        self._is_closing = True
        for child in list(self.children):
            child.end()

    def adopt(self, port: Port) -> None:
        """End this one too when a child ends."""
        self.ports.append(port)
        if self.error is not None:
            port.end()

    def _run(self) -> None:
        try:
            self._start()
            self.error = self._follow()
        except Exception as error:
            self.error = error
        self._end()

    def _start(self) -> None:
        for task in self._tasks:
            rank, environment = task.rank.rank, task.environment
            self.children.append(ChildProcess(PROGRAM, task, rank=rank, environment=environment))
            if self._is_closing:
                self.children[-1].end()

    def _follow(self) -> Exception:
        """Take in what the children say, until one of them ends: why."""
        with selectors.DefaultSelector() as selector:
            for child in self.children:
                selector.register(child.connection, selectors.EVENT_READ, child)
                selector.register(child.written, selectors.EVENT_READ, child)
                if child.exit_descriptor is not None:
                    selector.register(child.exit_descriptor, selectors.EVENT_READ, child)
            while True:
                for key, _ in selector.select():
                    child = key.data
                    error = None
                    if key.fileobj is child.connection:
                        error = self._hear(child)
                    elif key.fileobj == child.exit_descriptor:
                        error = self._hear_last(child)
                    elif not child.read_written():
                        selector.unregister(child.written)
                    if error is not None:
                        return error

    def _hear(self, child: ChildProcess) -> Exception | None:
        """Take in one message; an error where that is the end of it."""
        try:
            (what, value), _ = receive_message(child.connection)
        except ConnectionEnded:
            return self._end_of(child)
        if what == "failed":
            return arrived(value)
        if what == "log":
            self._log(child, *value)
        elif what == "loaded":
            self._facts[child.rank] = value
            if len(self._facts) == len(self._tasks):
                self._tell([self._facts[rank] for rank in sorted(self._facts)])
        return None

    def _log(self, child: ChildProcess, name: str, level: int, message: str) -> None:
        is_loading = len(self._facts) < len(self._tasks)
        if not (is_loading and (child.rank > 0 or self._tasks[child.rank].repeats)):
            logging.getLogger(name).log(level, "%s", message)

    def _hear_last(self, child: ChildProcess) -> Exception:
        """It has ended: take in what it said before."""
        while child.has_said_more():
            error = self._hear(child)
            if error is not None:
                return error
        return self._end_of(child)

    def _end_of(self, child: ChildProcess) -> Exception:
        if self._is_closing:
            return EngineError("the process of the model was ended")
        child.wait()
        return ProcessDied(f"the model's {child.how_it_ended()}")

    def _end(self) -> None:
        """End all children, and every wait for one."""
        was_loaded, error = len(self._facts) == len(self._tasks), self.error
        assert error is not None
        for child in self.children:
            child.end()
        for child in self.children:
            child.wait()
            child.close()
        for port in list(self.ports):
            port.end()
        self.ended.set()
        if not was_loaded:
            self._tell(error)
        elif not self._is_closing and self.on_lost is not None:
            self.on_lost(error)

    def after_fork_in_child(self) -> None:
        """The children are the parent's. Their ports close with the parent, so none is kept."""
        for port in self.ports:
            port.close()
        self.error = EngineError("the process was forked, and the model's process is the parent's")
        self.ended = threading.Event()
        self.ended.set()

    def __repr__(self) -> str:
        return f"Watch({self.children!r}, error={self.error!r})"


class ChildGroup:
    """A hold on the children of one model: they end when it is closed or collected."""

    def __init__(self, tasks: Sequence[ChildTask], tell: Callable[[ChildGroup, Any], object]):
        """`tell` is called once by another thread: with the facts of each rank, or an error."""
        self.tasks = tuple(tasks)
        this = weakref.ref(self)

        def tell_of_this(what: Any) -> None:
            group = this()
            if group is not None:
                tell(group, what)

        self._watch = Watch(self.tasks, tell_of_this)
        self._when_collected = weakref.finalize(self, _release, self._watch)
        self._when_collected.atexit = False  # with the process, its connections end

    def start(self) -> None:
        """Start the children, without waiting for them."""
        self._watch.thread.start()

    def serve(self, ports: Iterable[tuple[Port, Sequence[Any]]], send: Callable[..., None]) -> None:
        """Connect loaded children by ports; of each, the ends for every rank."""
        ends: list[list[Any]] = [[] for _ in self._watch.children]
        for port, others in ports:
            self._watch.adopt(port)
            for own, other in zip(ends, others, strict=True):
                own.append(other)
        is_ordered = len(ends) > 1
        try:
            for child, own in zip(self._watch.children, ends, strict=True):
                descriptors = [each.fileno() for each in own]
                send(child.connection, ("serve", is_ordered), descriptors)
        except ConnectionEnded:
            raise self.lost() from None
        finally:
            for each in (other for own in ends for other in own):
                each.close()

    def lost(self) -> Exception:
        """Why it has ended, waited for."""
        self._watch.ended.wait()
        assert self._watch.error is not None
        return self._watch.error

    def tell_when_lost(self, tell: Lost) -> None:
        """Call `tell` with the error if a child ends by itself; on another thread, or now."""
        self._watch.on_lost = tell
        if self._watch.ended.is_set():
            tell(self.lost())

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' ids, by rank."""
        return tuple(child.pid for child in self._watch.children)

    def end(self) -> None:
        """Have the children end, without waiting for it."""
        self._watch.end()

    def close(self) -> None:
        """End the children, wait for that, and close what they were connected by."""
        self._watch.end()
        if self._watch.thread.is_alive():
            self._watch.thread.join()
        self._when_collected.detach()
        _release(self._watch)  # which a finalizer would not do any more while the process ends

    def __repr__(self) -> str:
        return f"ChildGroup(pids={self.pids}, error={self._watch.error!r})"


def _release(watch: Watch) -> None:
    watch.end()
    for port in watch.ports:
        port.close()


def load_groups(tasks: Sequence[Sequence[ChildTask]]) -> list[tuple[ChildGroup, list[RunnerFacts]]]:
    """Start a group for each, all at the same time, and wait until they are loaded.

    Raises the error of the first that is not, or what interrupted the wait; none is left then.
    """
    told: queue.SimpleQueue[tuple[ChildGroup, Any]] = queue.SimpleQueue()
    groups = [ChildGroup(each, lambda *what: told.put(what)) for each in tasks]
    facts: dict[int, list[RunnerFacts]] = {}
    try:
        for group in groups:
            group.start()
        while len(facts) < len(groups):
            group, what = told.get()
            if isinstance(what, Exception):
                raise what
            facts[id(group)] = what
        return [(group, facts[id(group)]) for group in groups]
    except BaseException:
        for group in groups:
            group.end()
        for group in groups:
            group.close()
        raise


def _after_fork_in_child() -> None:
    for watch in list(_watches):
        with contextlib.suppress(OSError):
            watch.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
