"""`LaunchThread`: the one thread that launches on a device.

torch keeps a cuBLAS handle and a workspace for each thread. A second thread that launches takes
another workspace, and where its first product is captured in a CUDA graph, that workspace is gone
with the graph. So several threads wait for batches, and one launches them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["LaunchThread"]

Result = TypeVar("Result")
Work = tuple["Future[Any]", Callable[[], Any]]


class LaunchThread:
    """Runs what it is given, in turn. The thread ends when the object is collected."""

    def __init__(self, name: str = "millpond-launch") -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        threading.Thread(target=_run_all, args=(self._work,), name=name, daemon=True).start()
        weakref.finalize(self, self._work.put, None).atexit = False

    def run(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, or raises, on the thread."""
        done: Future[Result] = Future()
        self._work.put((done, work))
        return done.result()


def _run_all(queue: SimpleQueue[Work | None]) -> None:
    while (item := queue.get()) is not None:
        done, work = item
        try:
            result = work()
        except BaseException as error:  # the waiting thread raises it
            done.set_exception(error)
        else:
            done.set_result(result)
            del result
        del item, done, work  # they would keep a batch while this thread waits
