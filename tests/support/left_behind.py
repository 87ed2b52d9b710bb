"""What a test may not leave behind: processes, descriptors, threads and names of shared memory."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 30.0


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that nobody has asked for its status counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is no child of this one, or that another thread reaps."""
    until_s = time.monotonic() + PATIENCE_S
    while is_alive(pid):
        assert time.monotonic() < until_s, f"process {pid} goes on"
        threading.Event().wait(0.01)  # the system tells nobody else of its end


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:  # the one that the folder is read through
            continue
    return found


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Assert that the block leaves nothing behind. Linux alone can tell of descriptors."""
    gc.collect()
    threads, names = set(threading.enumerate()), set(os.listdir("/dev/shm"))
    before = _descriptors()
    yield
    gc.collect()
    assert set(threading.enumerate()) <= threads
    assert set(os.listdir("/dev/shm")) <= names
    after = _descriptors()
    assert len(after) <= len(before), {name: after[name] for name in after.keys() - before.keys()}
