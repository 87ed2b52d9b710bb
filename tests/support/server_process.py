"""A server as a process of its own, on a free port of the loopback interface."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fakes import PATIENCE_S

READY = "ready at "
LOADING_PATIENCE_S = 120.0


class ServerProcess:
    """The process, what it has logged, and where it answers."""

    def __init__(self, *flags: str, **environment: str) -> None:
        # One thread: the tests share the machine with others.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "millpond.server", "--port", "0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        )
        self.lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(READY).partition(READY)[2]

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip())
            self._arrived.put(line.rstrip())
        self._arrived.put(None)

    def wait_for(self, text: str) -> str:
        """The next log line that holds the text."""
        while (line := self._arrived.get(timeout=LOADING_PATIENCE_S)) is not None:
            if text in line:
                return line
        raise AssertionError("the server is gone:\n" + "\n".join(self.lines))

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Tell it to stop."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit status."""
        status = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextmanager
def server_process(*flags: str, **environment: str) -> Iterator[ServerProcess]:
    """A server that is ready, and that is gone afterwards whatever a test does."""
    server = ServerProcess(*flags, **environment)
    try:
        yield server
    finally:
        server.kill()
