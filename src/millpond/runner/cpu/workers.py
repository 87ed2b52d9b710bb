"""`CpuWorkers`: how many batches a CPU runs at a time, and how many threads each of them takes.

Several forward passes on few threads each do more than one pass on all of them: inside a pass the
threads wait for each other at every layer, and most of all while others use the processor. So
batches run side by side, one thread each for a small model on up to 16 threads, and queries have a
worker of their own, for which the others yield (`preemption`).

The bits of a vector do not depend on the count where `batch_invariance` found so: every thread
computes whole rows. That takes more than the count of OpenMP's threads. MKL has one of its own,
which `torch.set_num_threads` and the environment set too, and where it is larger than one MKL
divides a product among threads and adds up the parts, as many as it sees fit at that moment. So a
pass tells MKL to stay on the calling thread: torch divides the work already.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from ...cpu.openmp import (
    QUERY_OPERATIONS_PER_THREAD,
    clamped,
    has_room_for,
    limited_threads,
    may_use_several,
    multiplied_parameters,
    openmp_library,
)
from ...cpu.preemption import Preemption, here
from ...layers.cpu.int8.linear import has_int8_layers
from ...layers.rotary import rotates_by_length
from ...layers.split import is_split
from ...locks import fork_safe
from ...model.loading.bert import Bert
from ...scheduler.request_future import this_thread

__all__ = ["CpuWorkers", "is_reentrant"]

# Python's share of a pass is serial, and a few percent of it. On 32 threads of a Xeon with
# all-MiniLM-L6-v2 16 workers on two threads each do 1.4 to 1.5 times as much as on one each, and as
# much as 32 workers; 32 do 1.2 times as much in int8, which makes no use of a second thread.
MOST_WORKERS = 16


# What one thread computes in about a second and in about 15 ms, in floating-point operations.
# A bulk batch may take that second, since queries do not wait for it.
BATCH_OPERATIONS_PER_THREAD = 1e11


# With matrix units (Intel's AMX) a thread does ten times as much in bfloat16, and more is lost to
# waiting inside a pass: passages of BERT base's shape come 1.7 times as fast by two passes on one
# thread each as by one on two. Without them the one is as fast, and 1.1 times in float32.
MATRIX_UNITS_TIMES = 10


# A lone query on the main thread takes two threads from here on: 8 tokens of all-MiniLM-L6-v2 on a
# 2-core EPYC come 1.4 times as fast by two, 4 tokens 1.2 times. Elsewhere it does not: the thread
# that waits for the vector is then another one, which would share a processor with the second.
PAIR_OPERATIONS = 1.2e8


class CpuWorkers:
    """Threads shared out among the workers of one model, `total` in all.

    `workers` run batches at a time, on `per_worker` threads each, and where there are two threads
    or more, `query_workers` (one) beside them runs queries alone. A pass takes one of `counts`.
    """

    def __init__(
        self,
        total: int,
        *,
        parameters: int,
        max_batch_tokens: int,
        matrix_units: bool = False,
        one_thread: bool = False,
        side_by_side: bool = True,
    ) -> None:
        """With `one_thread` a pass makes no use of more, so there are more workers instead.

        `matrix_units` says whether products run on those. Where passes cannot run `side_by_side`,
        there is one worker, and it takes all threads.
        """
        self.total = total
        self._operations_per_token = 2 * parameters
        operations = self._operations_per_token * max_batch_tokens
        per_thread = BATCH_OPERATIONS_PER_THREAD * (MATRIX_UNITS_TIMES if matrix_units else 1)
        threads = clamped(1, operations / per_thread, total)
        if one_thread:
            self.workers, self.per_worker = min(total, 2 * MOST_WORKERS * threads), 1
        else:
            self.workers = min(total // threads, MOST_WORKERS)
            self.per_worker = total // self.workers
        if not side_by_side:
            self.workers, self.per_worker = 1, total
        self.side_by_side = side_by_side
        self._one_thread = one_thread
        self._divides_texts = one_thread or threads == 1
        self.query_workers = 1 if total > 1 and side_by_side else 0
        self.counts = _counts(total, self.per_worker) if side_by_side else (total,)
        self._lock = fork_safe(threading.Lock())
        self._in_use = 0  # under the lock; by passes of `_process`
        self._process = os.getpid()
        self._preemption = Preemption()
        self._has_waiting: Callable[[], bool] = bool

    @classmethod
    def for_models(cls, models: Sequence[nn.Module], *, max_batch_tokens: int) -> CpuWorkers | None:
        """For the models of an engine on the CPU; None without an OpenMP to ask.

        Passes run side by side where there is one model that is no other after a pass. Those with
        dynamic rotary embeddings are, and a checkpoint's own code may be. One that is split among
        processes has to run its passes in one order in all of them.
        """
        if openmp_library() is None:
            return None
        total = torch.get_num_threads()
        if len(models) != 1 or not is_reentrant(models[0]):
            return cls(total, parameters=0, max_batch_tokens=max_batch_tokens, side_by_side=False)
        return cls(
            total,
            parameters=multiplied_parameters(models[0]),
            max_batch_tokens=max_batch_tokens,
            matrix_units=_uses_matrix_units(models[0]),
            one_thread=has_int8_layers(models[0]),
        )

    def look_for_queries(self, has_waiting: Callable[[], bool]) -> None:
        """Passes of ingestion make room as soon as `has_waiting()`, where a query can then run."""
        if self.query_workers:
            self._has_waiting = self._preemption.has_waiting = has_waiting

    def wanted(self, tokens: int, *, queries: bool, texts: int = 1) -> int:
        """Threads for a batch, of those that are free and at least its share.

        Several texts of a model that one thread does for are divided among workers, which do more
        than a pass on many threads; and a thread that once took many keeps the others of its pool
        awake.
        """
        if not queries or not self.side_by_side or (texts > 1 and self._divides_texts):
            return self.per_worker
        operations = self._operations_per_token * tokens
        free = max(self.total - self._in_use, self.total // 2, 1)
        threads = operations / QUERY_OPERATIONS_PER_THREAD
        if operations >= PAIR_OPERATIONS and free > 1 and self._may_pair():
            threads = max(threads, 2)
        return min(self._free_counts(free), key=lambda count: abs(count - threads))

    def _may_pair(self) -> bool:
        """Whether a pass of a few tokens may take two threads where it is called."""
        return not self._one_thread and may_use_several() and has_room_for(2)

    def _free_counts(self, free: int) -> tuple[int, ...]:
        return self.counts[: bisect_right(self.counts, free)] or self.counts[:1]

    @contextmanager
    def running(self, tokens: int, *, queries: bool, texts: int = 1) -> Iterator[int]:
        """Give the calling thread its count for one pass. Other threads keep theirs.

        It has the count back that it had before.
        """
        with self._lock:
            if self._process != os.getpid():  # the passes stayed behind at the fork
                self._in_use, self._process = 0, os.getpid()
                self._preemption = Preemption()
                self._preemption.has_waiting = self._has_waiting
            count = self.wanted(tokens, queries=queries, texts=texts)
            self._in_use += count
        try:
            if queries:
                with self._ahead_of_bulk(count), limited_threads(count):
                    yield count
            else:
                here.yields_to, here.not_before_s = self._preemption, 0.0
                with limited_threads(count):
                    yield count
        finally:
            here.yields_to = None
            with self._lock:
                self._in_use -= count

    def _ahead_of_bulk(self, threads: int) -> AbstractContextManager[None]:
        """A pass for queries on that number of threads; an engine's own thread's until `delivered`.

        Before that its callers would wait for the passes of ingestion that go on then: for the
        interpreter, and for a processor.
        """
        if not this_thread.is_uninterrupted:
            return self._preemption.query()
        self._preemption.begin_query(may_move=threads == 1)
        return nullcontext()

    def delivered(self) -> None:
        """What came of the calling thread's last pass is with its callers."""
        self._preemption.end_query()

    def __repr__(self) -> str:
        return (
            f"CpuWorkers(total={self.total}, workers={self.workers}, "
            f"per_worker={self.per_worker}, in_use={self._in_use})"
        )


def _counts(total: int, per_worker: int) -> tuple[int, ...]:
    """The numbers of threads that a pass may take: few, so that each can be checked at load."""
    powers = {1 << power for power in range(total.bit_length())}
    return tuple(sorted({*powers, per_worker, total}))


def _uses_matrix_units(model: nn.Module) -> bool:
    has_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return model.dtype == torch.bfloat16 and bool(has_units())


def is_reentrant(model: nn.Module) -> bool:
    is_known = isinstance(model, Bert) or type(model).__module__.startswith("transformers.")
    if not is_known:
        return False
    return not rotates_by_length(model) and not is_split(model)
