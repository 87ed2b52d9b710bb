"""`ChildProcess`: one child as its parent sees it, from its start to its end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Mapping
from multiprocessing import spawn
from typing import Any

from ...errors import EngineError
from .messages import ConnectionEnded, send_message

__all__ = ["ChildProcess", "can_start_children"]

ENDS_WITHIN_S = 5.0  # once its connection is closed; it is killed then
NO_VARIABLES: Mapping[str, str] = {}
MOST_LINES, LINE_BYTES = 20, 500  # of what it wrote last, for the message of its death

logger = logging.getLogger("millpond")

_children: weakref.WeakSet[ChildProcess] = weakref.WeakSet()  # of this process; for a fork


def can_start_children() -> bool:
    """Whether this system has what a child is connected by."""
    return os.name == "posix" and hasattr(socket, "send_fds")


class ChildProcess:
    """A child that was started for a task. One thread, which no interrupt comes to, owns it."""

    def __init__(
        self,
        program: str,
        task: Any,
        *,
        rank: int = 0,
        environment: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        """Start a module that calls `run_as_child`, and send it a task, which pickles.

        `environment` has variables that it gets beside this process's, or instead of them.
        Raises `EngineError` where the system lets no process be started.
        """
        self.rank = rank
        self.connection, other = socket.socketpair()
        self._last_lines: deque[str] = deque(maxlen=MOST_LINES)
        try:
            with other:
                self._process = _start(program, other, environment)
            assert self._process.stderr is not None
            self.written = self._process.stderr
            self.exit_descriptor = _exit_descriptor(self._process.pid)
            os.set_blocking(self.written.fileno(), False)
            with contextlib.suppress(ConnectionEnded):  # it has died; its watch will see it
                send_message(self.connection, (task, logger.getEffectiveLevel()))
        except BaseException:
            self.connection.close()
            raise
        _children.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def read_written(self) -> bool:
        """Take in what it wrote to its standard error; False once there will be no more."""
        data: bytes | None = self.written.read(1 << 16)
        for line in (data or b"").decode(errors="replace").splitlines():
            if line.strip():
                self._last_lines.append(line[:LINE_BYTES])
                logger.debug("process %d wrote: %s", self.pid, line)
        return data != b""

    def has_said_more(self) -> bool:
        """Whether there is a message of it to be read, or the connection's end."""
        try:
            self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def end(self) -> None:
        """Let it end, without waiting for it. Any thread may, and more than once."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def wait(self) -> None:
        """Wait until it has ended, and take in what it wrote last."""
        self.end()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.read_written()

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """After its end: close what it was connected by."""
        self.connection.close()
        self.written.close()
        if self.exit_descriptor is not None:
            os.close(self.exit_descriptor)
            self.exit_descriptor = None

    def forget(self) -> None:
        """In a forked child of the parent: it is the parent's, and is left alone."""
        self._process.returncode = 0  # or collecting it would complain that it runs on
        self.close()

    def how_it_ended(self) -> str:
        """In words, once it has."""
        status = self._process.returncode
        ended = f"exited with status {status}"
        if status < 0:
            try:
                ended = f"was killed by {signal.Signals(-status).name}"
            except ValueError:
                ended = f"was killed by signal {-status}"
        lines = "".join(f"\n  {line}" for line in self._last_lines)
        return f"process {self.pid} {ended}" + (f"; it last wrote:{lines}" if lines else "")

    def __repr__(self) -> str:
        return f"ChildProcess(rank={self.rank}, pid={self.pid}, status={self._process.returncode})"


def _exit_descriptor(pid: int) -> int | None:
    """What can be read when the process ends, although a process that it forked holds its
    connection; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # no Linux, or an old one
        return None


def _start(
    program: str, connection: socket.socket, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    executable = spawn.get_executable()  # the one that `multiprocessing` was told of, if it was
    if not executable or getattr(sys, "frozen", False):
        raise EngineError(
            "no process can be started for the engine: sys.executable is no Python that could "
            "run it; name one with multiprocessing.set_executable, or leave out replicas"
        )
    path = [entry or os.getcwd() for entry in sys.path if isinstance(entry, str)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **variables}
    command = [os.fsdecode(executable), "-P", "-m", program]
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "bufsize": 0,
        "pass_fds": [connection.fileno()],
        "env": environment,
        "process_group": 0,  # what a terminal sends to this group does not reach it
    }
    try:
        return subprocess.Popen([*command, str(connection.fileno())], **options)
    except OSError as error:
        raise EngineError(f"a process of the engine could not be started: {error}") from error


def _after_fork_in_child() -> None:
    for child in list(_children):
        with contextlib.suppress(OSError):
            child.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
