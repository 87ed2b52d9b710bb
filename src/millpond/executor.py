"""`BatchExecutor`: carries planned batches out, on the thread of one worker.

It launches them, brings their vectors home to their jobs, and when one fails it splits it until
the good texts are through and the bad one is alone. It plans nothing and holds no lock.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import NonFiniteVector, OutOfMemory, TextFailed
from .runner import BatchRunner, Ticket
from .scheduling.batch import Batch, Segment
from .scheduling.job import Job, Lane
from .stats import BatchStats

__all__ = ["BatchExecutor", "Listener"]

logger = logging.getLogger("millpond")


class Listener(Protocol):
    """Who hears how batches went."""

    def batch_ran(self, batch: Batch, stats: BatchStats) -> None:
        """A batch is home, its vectors written."""

    def job_completed(self, job: Job) -> None:
        """The last text of a job has its vector or its error."""

    def out_of_memory(self, batch: Batch) -> None:
        """A batch of several texts did not fit and is being split."""


@dataclass
class _Flight:
    batch: Batch
    launched_s: float
    alone: bool
    """Whether it was launched with no other in flight."""
    is_part: bool = False
    """Whether it is a part of a batch that failed."""
    ticket: Ticket | None = None
    error: Exception | None = None


class BatchExecutor:
    """Runs batches on a runner and tells a listener. Used by one thread only."""

    def __init__(
        self, runner: BatchRunner, listener: Listener, *, clock: Callable[[], float]
    ) -> None:
        self._runner = runner
        self._listener = listener
        self._clock = clock
        self._flights: deque[_Flight] = deque()
        self._last_done_s = 0.0

    def __len__(self) -> int:
        """Batches launched and not home yet."""
        return len(self._flights)

    @property
    def is_full(self) -> bool:
        """Whether a batch must come home before another is launched."""
        return len(self._flights) >= self._runner.depth

    def __repr__(self) -> str:
        texts = sum(flight.batch.texts for flight in list(self._flights))
        return f"BatchExecutor(batches={len(self._flights)}, texts={texts})"

    def launch(self, batch: Batch) -> None:
        """Start a batch. What goes wrong shows when it comes home."""
        self._flights.append(self._start(batch))

    def finish_oldest(self) -> None:
        """Bring the batch launched first home. Raises only what no batch can survive."""
        self._finish(self._flights.popleft())

    def _start(self, batch: Batch) -> _Flight:
        flight = _Flight(batch, self._clock(), alone=not self._flights)
        for segment in batch.segments:
            if segment.job.started_s is None:
                segment.job.started_s = flight.launched_s
        try:
            flight.ticket = self._runner.launch(batch)
        except Exception as error:
            flight.error = error
        return flight

    def _finish(self, flight: _Flight) -> None:
        try:
            if flight.error is not None:
                raise flight.error
            assert flight.ticket is not None
            vectors = self._runner.collect(flight.ticket)
        except Exception as error:
            self._recover(flight, error)
            return
        done_s = self._clock()
        # With two batches in flight, the second one's time starts when the first is done.
        forward_s = done_s - max(flight.launched_s, self._last_done_s)
        self._last_done_s = done_s
        failed = self._deliver(flight.batch, vectors, forward_s)
        stats = _stats(flight.batch, flight.ticket.padded_tokens, forward_s, failed)
        self._listener.batch_ran(flight.batch, stats)
        self._end_completed(flight.batch)

    def _deliver(self, batch: Batch, vectors: npt.NDArray[np.float32], forward_s: float) -> int:
        """Write the vectors of a batch to its jobs; how many were not finite is returned."""
        place = failed = 0
        for segment in batch.segments:
            failed += _write(segment, vectors[place : place + segment.texts])
            place += segment.texts
        for job in batch.jobs:
            job.spent(forward_s=forward_s)
        return failed

    def _end_completed(self, batch: Batch) -> None:
        for job in batch.jobs:
            if not job.remaining:
                self._listener.job_completed(job)

    def _recover(self, flight: _Flight, error: Exception) -> None:
        """Split a failed batch until its good texts are through and its bad one is alone."""
        if self._runner.is_fatal(error):
            raise error
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed pass
        batch = flight.batch
        out_of_memory = self._runner.is_out_of_memory(error)
        if out_of_memory:
            while self._flights:  # they take memory too
                self.finish_oldest()
            self._runner.free_memory()
        if batch.texts == 1 and out_of_memory and not flight.alone:
            self._finish(self._start(batch))
            return
        if batch.texts == 1:
            self._fail_text(batch.segments[0], error, out_of_memory=out_of_memory)
            self._end_completed(batch)
            return
        if out_of_memory and not flight.is_part:
            self._listener.out_of_memory(batch)
        for half in batch.halves():
            alive = half.alive()
            if alive.segments:
                part = self._start(alive)
                part.is_part = True
                self._finish(part)

    def _fail_text(self, segment: Segment, error: Exception, *, out_of_memory: bool) -> None:
        row = int(segment.chunk.rows[segment.start])
        if out_of_memory:
            failure: TextFailed = OutOfMemory(
                f"its {segment.tokens} tokens do not fit in memory even alone; lower max_length "
                "or free memory on the device",
                index=row,
            )
        else:
            failure = TextFailed(
                f"the model failed on it with {type(error).__name__}: {error}", index=row
            )
        failure.__cause__ = error
        segment.job.fail(row, failure)
        logger.warning("a text failed: %s", failure)


def _write(segment: Segment, vectors: npt.NDArray[np.float32]) -> int:
    """Write the vectors of a segment to its job; how many were not finite is returned."""
    job, chunk = segment.job, segment.chunk
    texts = chunk.rows[segment.start : segment.stop]
    with np.errstate(all="ignore"):  # what comes of it is looked at below
        output_rows = job.output.rows(vectors)
    computed, finite = _finite(vectors), _finite(output_rows)
    finite &= computed
    job.spent(tokenize_s=_tokenize_s(segment))
    job.write(texts[finite], output_rows[finite])
    for place in np.flatnonzero(~finite).tolist():
        reason = (
            f"its vector is too long for {job.output.dtype}; ask for output_dtype='float32'"
            if computed[place]
            else "the model gave NaN or infinity for it; try dtype='bfloat16' or 'float32'"
        )
        row = int(texts[place])
        job.fail(row, NonFiniteVector(reason, index=row))
    return len(texts) - int(finite.sum())


def _finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    finite: npt.NDArray[np.bool_] = np.isfinite(rows).all(axis=1)
    return finite


def _tokenize_s(segment: Segment) -> float:
    """The segment's share of the time its chunk took to tokenise."""
    return segment.chunk.tokenize_s * segment.texts / len(segment.chunk)


def _stats(batch: Batch, padded_tokens: int, forward_s: float, failed: int) -> BatchStats:
    return BatchStats(
        interactive_texts=batch.lane_texts(Lane.INTERACTIVE),
        bulk_texts=batch.lane_texts(Lane.BULK),
        tokens=batch.tokens,
        padded_tokens=padded_tokens,
        queue_s=batch.queue_s,
        tokenize_s=sum(map(_tokenize_s, batch.segments)),
        forward_s=forward_s,
        failed_texts=failed,
    )
