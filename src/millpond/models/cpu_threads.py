"""`CpuThreads`: how many batches a CPU runs at a time, and how many threads each of them takes.

Several forward passes on few threads each do more than one pass on all of them: inside a pass the
threads wait for each other at every layer, and most of all while others use the processor. So
batches run side by side, one thread each for a small model on up to 16 threads, and queries have a
worker of their own, for which the others step aside (`right_of_way`).

The bits of a vector do not depend on the count: every thread computes whole rows.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .cpu_int8 import has_int8_layers
from .right_of_way import RightOfWay
from .rotary import rotates_by_length
from .thread_choice import ThreadChoice

__all__ = ["CpuThreads", "may_use_several", "threads_for_a_check"]

# Python's share of a pass is serial, and a few percent of it. On 32 threads of a Xeon with
# all-MiniLM-L6-v2 16 workers on two threads each do 1.4 to 1.5 times as much as on one each, and as
# much as 32 workers; 32 do 1.2 times as much in int8, which makes no use of a second thread.
MOST_WORKERS = 16
# What one thread computes in about a second and in about 15 ms, in floating-point operations.
# A bulk batch may take that second, since queries do not wait for it.
BATCH_OPERATIONS_PER_THREAD = 1e11
QUERY_OPERATIONS_PER_THREAD = 1.5e9
# With matrix units (Intel's AMX) a thread does ten times as much in bfloat16, and more is lost to
# waiting inside a pass: passages of BERT base's shape come 1.7 times as fast by two passes on one
# thread each as by one on two. Without them the one is as fast, and 1.1 times in float32.
MATRIX_UNITS_TIMES = 10


class CpuThreads:
    """Threads shared out among the workers of one model, `total` in all.

    `workers` run batches at a time, on `per_worker` threads each, and where there are two threads
    or more, `query_workers` (one) beside them runs queries alone.
    """

    def __init__(
        self,
        total: int,
        *,
        parameters: int,
        max_batch_tokens: int,
        matrix_units: bool = False,
        one_thread: bool = False,
    ) -> None:
        """With `one_thread` a pass makes no use of more, so there are more workers instead.

        `matrix_units` says whether products run on those.
        """
        self.total = total
        self._operations_per_token = 2 * parameters
        operations = self._operations_per_token * max_batch_tokens
        per_thread = BATCH_OPERATIONS_PER_THREAD * (MATRIX_UNITS_TIMES if matrix_units else 1)
        threads = _between(1, operations / per_thread, total)
        if one_thread:
            self.workers, self.per_worker = min(total, 2 * MOST_WORKERS * threads), 1
        else:
            self.workers = min(total // threads, MOST_WORKERS)
            self.per_worker = total // self.workers
        self._divides_texts = one_thread or threads == 1
        self.query_workers = 1 if total > 1 else 0
        self._lock = threading.Lock()
        self._in_use = 0  # under the lock
        self._right_of_way = RightOfWay()
        # For short queries on the main thread; under the lock.
        self._choice = ThreadChoice() if total > 1 else None

    @classmethod
    def for_model(cls, model: nn.Module, *, max_batch_tokens: int) -> CpuThreads | None:
        """For a model on the CPU; None where passes cannot run side by side on counts of their own.

        That is so for a model that changes itself as it runs, which dynamic rotary embeddings do
        and a checkpoint's own code may, and without an OpenMP to ask.
        """
        if not _is_reentrant(model) or _openmp() is None:
            return None
        return cls(
            torch.get_num_threads(),
            parameters=_multiplied_parameters(model),
            max_batch_tokens=max_batch_tokens,
            matrix_units=_uses_matrix_units(model),
            one_thread=has_int8_layers(model),
        )

    def wanted(self, tokens: int, *, queries: bool, texts: int = 1) -> int:
        """Threads for a batch, of those that are free and at least its share.

        Several texts of a model that one thread does for are divided among workers, which do more
        than a pass on many threads; and a thread that once took many keeps the others of its pool
        awake.
        """
        if not queries or (texts > 1 and self._divides_texts):
            return self.per_worker
        operations = self._operations_per_token * tokens
        free = max(self.total - self._in_use, self.total // 2, 1)
        return _between(1, operations / QUERY_OPERATIONS_PER_THREAD, free)

    @contextmanager
    def running(self, tokens: int, *, queries: bool, texts: int = 1) -> Iterator[int]:
        """Give the calling thread its count for one pass. Other threads keep theirs.

        It may be a caller's own, which gets back the count it had.
        """
        before = torch.get_num_threads()
        with self._lock:
            count = self.wanted(tokens, queries=queries, texts=texts)
            is_short = queries and texts == count == 1
            choice = self._choice if is_short and may_use_several() else None
            if choice is not None:
                count = choice.next()
            self._in_use += count
        way, since_s = self._right_of_way, time.perf_counter()
        try:
            _set_own_threads(count)
            with way.query() if queries else way.ingestion():
                yield count
        finally:
            _set_own_threads(before)
            with self._lock:
                self._in_use -= count
                if choice is not None:
                    choice.took(count, time.perf_counter() - since_s)

    def __repr__(self) -> str:
        return (
            f"CpuThreads(total={self.total}, workers={self.workers}, "
            f"per_worker={self.per_worker}, in_use={self._in_use})"
        )


_own_process = os.getpid()


def may_use_several() -> bool:
    """Whether a caller's thread may take several: the main one, so one pool is all that is made.

    Not after a fork: there GNU's OpenMP waits for the threads that stayed behind.
    """
    return threading.current_thread() is threading.main_thread() and not _is_forked()


def _is_forked() -> bool:
    if os.getpid() != _own_process:
        return True
    started = multiprocessing.get_start_method(allow_none=True)
    return multiprocessing.parent_process() is not None and started != "spawn"


@contextmanager
def threads_for_a_check(model: nn.Module, tokens: int) -> Iterator[None]:
    """Give the calling thread no more threads than a few passes of so many tokens make use of.

    On a busy processor a small model waits longer for a second thread than it computes. The
    caller's own count is back afterwards.
    """
    if _openmp() is None:
        yield
        return
    before = torch.get_num_threads()
    operations = 2 * _multiplied_parameters(model) * tokens
    _set_own_threads(_between(1, operations / QUERY_OPERATIONS_PER_THREAD, before))
    try:
        yield
    finally:
        _set_own_threads(before)


def _between(least: int, wanted: float, most: int) -> int:
    return max(least, min(most, round(wanted)))


def _multiplied_parameters(model: nn.Module) -> int:
    """The weights every token is multiplied with: all but tables of embeddings."""
    looked_up = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
    }
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in looked_up)


def _uses_matrix_units(model: nn.Module) -> bool:
    has_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return model.dtype == torch.bfloat16 and bool(has_units())


def _is_reentrant(model: nn.Module) -> bool:
    if not type(model).__module__.startswith("transformers."):
        return False
    return not rotates_by_length(model)


def _set_own_threads(count: int) -> None:
    # The count is a variable of the calling thread, by the OpenMP specification (nthreads-var).
    # torch sets it once itself, at its first use in a thread, so that has to come before.
    torch.get_num_threads()
    openmp = _openmp()
    assert openmp is not None
    openmp.omp_set_num_threads(count)


@cache
def _openmp() -> Any:
    """The OpenMP library that torch's own kernels use, or None."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            loaded = ctypes.CDLL(str(library))
            known = loaded.omp_set_num_threads, loaded.omp_get_max_threads
        except (OSError, AttributeError):
            continue
        if all(known) and loaded.omp_get_max_threads() == torch.get_num_threads():
            return loaded
    return None
