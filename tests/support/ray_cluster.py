"""A small Ray cluster of this machine's own, and the processes that it has."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

__all__ = ["cluster", "processes"]


@contextmanager
def cluster() -> Iterator[None]:
    """Two cores and little memory; every process of it has ended afterwards."""
    # What Ray's processes are given is this process's environment, with the path to the tests' own.
    ray.init(
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def processes(title: str) -> list[int]:
    """Children of this process, and theirs, whose command line holds `title`; Linux alone."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and os.getpid() in _ancestors(int(folder.name)):
            try:
                command = (folder / "cmdline").read_text()
            except OSError:
                continue
            if title in command:
                found.append(int(folder.name))
    return found


def kill(process: int) -> None:
    """As the kernel does where memory runs out."""
    os.kill(process, signal.SIGKILL)


def _ancestors(process: int) -> Iterator[int]:
    while process > 1:
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return
        process = int(stat.rpartition(")")[2].split()[1])
        yield process
