"""All launches of a device come from one thread, whoever asks for them."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from millpond.runner.cuda.launch_thread import LaunchThread

PATIENCE_S = 30.0


def test_whoever_asks_the_same_thread_launches() -> None:
    launches = LaunchThread()
    with ThreadPoolExecutor(4) as callers:
        threads = set(callers.map(lambda _: launches.run(threading.get_ident), range(50)))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_what_a_launch_raises_is_raised_where_it_was_asked_for_and_the_next_one_runs() -> None:
    launches = LaunchThread()

    def fail() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        launches.run(fail)
    assert launches.run(lambda: 7) == 7


def test_the_thread_ends_with_the_object_and_keeps_nothing_of_what_it_ran() -> None:
    launches = LaunchThread()
    thread = launches.run(threading.current_thread)
    del launches
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
