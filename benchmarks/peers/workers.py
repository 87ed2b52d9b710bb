"""The benchmark's side of a peer's process.

All peers stay loaded, so that they can take turns; while one is asked the others are stopped, and
none of them can take time from it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from . import environments
from .peer import Peer

PROGRAM = "benchmarks.peers.worker"
LAST_LINES = 3


class WorkerFailed(Exception):
    """A peer that could not be loaded, or that died or hung; the message is its own error."""


def end_when_told() -> None:
    """Leave by an exception on SIGTERM, as on an interrupt, so that stopped processes are ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before its time"))


class Worker:
    """One peer, loaded in a process of its own. `start_s` is from process start to first vector."""

    def __init__(
        self, peer: Peer, file: Path, model: Path, texts: Path, *, timeout_s: float = 600
    ) -> None:
        if failure := environments.error(peer.environment):
            raise WorkerFailed(failure)
        self._timeout_s = timeout_s
        self._log = environments.FOLDER / "logs" / f"{peer.name.replace(' ', '-')}.log"
        self._log.parent.mkdir(exist_ok=True)
        python = environments.python(peer.environment)
        command = [python, "-m", PROGRAM, file, peer.name, model, texts]
        started = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=environments.ROOT,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._answer()
        self.start_s = time.perf_counter() - started
        self._signal(signal.SIGSTOP)

    def ask(self, figure: str, **arguments: Any) -> dict[str, Any]:
        """What the peer measured, or `{"error": …}`. Raises `WorkerFailed` if it has gone."""
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has died; there will be no answer
            print(json.dumps({"figure": figure, **arguments}), file=self._input, flush=True)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGCONT)
        self._input.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._kill()
        self._output.close()

    def _answer(self) -> dict[str, Any]:
        ready, _, _ = select.select([self._output], [], [], self._timeout_s)
        line = self._output.readline() if ready else ""
        if line:
            return dict(json.loads(line))
        self._kill()
        self._input.close()
        self._output.close()
        if not ready:
            raise WorkerFailed(f"no answer within {self._timeout_s:.0f} s")
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise WorkerFailed("\n".join(lines[-LAST_LINES:]) or "it died without a word")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Worker(pid={self._process.pid}, start_s={self.start_s:.1f})"
