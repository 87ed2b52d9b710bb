"""`BatchExecutor`: carries planned batches out, on the thread of one worker.

It launches them, brings their vectors home to their jobs, and when one fails it splits it until
the good texts are through and the bad one is alone. It plans nothing and holds no lock.
"""

from __future__ import annotations

import itertools
import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import NonFiniteVector, OutOfMemory, TextFailed
from ..runner.base import BatchHandle, ModelRunner
from ..scheduler.batch import Batch, Segment
from ..scheduler.deduplication import Duplicate
from ..scheduler.request import Priority, Request
from ..scheduler.token_chunk import TokenChunk
from ..stats import BatchStats

__all__ = ["BatchExecutor", "Listener"]

logger = logging.getLogger("millpond")


NO_FOLLOWERS: Mapping[int, Sequence[Duplicate]] = {}


class Listener(Protocol):
    """Who hears how batches went."""

    def batch_ran(self, batch: Batch, stats: BatchStats) -> None:
        """A batch is home, its vectors written."""

    def job_completed(self, job: Request) -> None:
        """The last text of a job has its vector or its error."""

    def out_of_memory(self, batch: Batch) -> None:
        """A batch of several texts, or a part of one, did not fit in memory."""

    def batch_landed(self, batch: Batch, *, keep: bool) -> Mapping[int, Sequence[Duplicate]]:
        """A batch, or a part of one that failed, is through; with `keep`, in every layer.

        Returned are the texts that wait for those of the batch, by their place in it.
        """

    def batch_failed(self, batch: Batch) -> None:
        """A batch failed and is being split."""

    def texts_dropped(self, segments: Sequence[Segment]) -> None:
        """Texts of a batch that failed are nobody's any more and do not run again."""


@dataclass
class _Flight:
    batch: Batch
    launched_s: float
    alone: bool
    """Whether it was launched with no other in flight."""
    is_part: bool = False
    """Whether it is a part of a batch that failed."""
    ticket: BatchHandle | None = None
    error: Exception | None = None


class BatchExecutor:
    """Runs batches on a runner and tells a listener. Used by one thread only."""

    def __init__(
        self, runner: ModelRunner, listener: Listener, *, clock: Callable[[], float]
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
            _note_start(segment.job, flight.launched_s)
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
        if (wrong := self._wrong_shape(flight.batch, vectors)) is not None:
            self._fail_texts(flight.batch, wrong)
            return
        done_s = self._clock()
        # With two batches in flight, the second one's time starts when the first is done.
        forward_s = done_s - max(flight.launched_s, self._last_done_s)
        self._last_done_s = done_s
        batch = flight.batch
        keep = bool(np.isfinite(vectors).all())
        followers = self._listener.batch_landed(batch, keep=keep)
        failed = _deliver(batch, vectors)
        for job in _jobs(batch, followers):
            job.spent(forward_s=forward_s)
        for place, texts in followers.items():
            for job, chunk, at in texts:
                _note_start(job, flight.launched_s)
                job.spent(tokenize_s=chunk.tokenize_s / len(chunk))
                failed += _write(job, chunk, at, vectors[place : place + 1])
        waited = sum(map(len, followers.values()))
        padded_tokens = flight.ticket.padded_tokens
        stats = _stats(batch, padded_tokens, forward_s, failed=failed, twins=waited)
        self._listener.batch_ran(batch, stats)
        self._end_completed(batch, followers)

    def _wrong_shape(self, batch: Batch, vectors: Any) -> Exception | None:
        """What is wrong with what the runner gave: then nobody knows whose each row is."""
        expected = (batch.texts, self._runner.routes[batch.route].dimension)
        is_numbers = isinstance(vectors, np.ndarray) and vectors.dtype.kind == "f"
        if is_numbers and vectors.shape == expected:
            return None
        shape = getattr(vectors, "shape", type(vectors).__name__)
        return TypeError(f"the runner gave {shape} for a batch whose vectors are {expected}")

    def _end_completed(
        self, batch: Batch, followers: Mapping[int, Sequence[Duplicate]] = NO_FOLLOWERS
    ) -> None:
        for job in _jobs(batch, followers):
            if not job.remaining:
                self._listener.job_completed(job)

    def _recover(self, flight: _Flight, error: Exception) -> None:
        """Split a failed batch until its good texts are through and its bad one is alone."""
        if self._runner.is_fatal(error):
            raise error
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed pass
        self._listener.batch_failed(flight.batch)
        batch = flight.batch.uncached()
        out_of_memory = self._runner.is_out_of_memory(error)
        if out_of_memory and not flight.is_part and _is_divisible(flight.batch):
            self._listener.out_of_memory(flight.batch)
        if out_of_memory:
            while self._flights:  # they take memory too
                self.finish_oldest()
            self._runner.free_memory()
        without = flight.batch.uses_prefixes or (out_of_memory and not flight.alone)
        if batch.texts == 1 and without:  # prefixes or the other batches were too much, perhaps
            self._finish(self._start(batch))
            return
        if batch.texts == 1:
            self._fail_texts(batch, error, out_of_memory=out_of_memory)
            return
        for half in batch.halves():
            alive = half.alive()
            self._listener.texts_dropped(half.left_out(alive))
            if alive.segments:
                part = self._start(alive)
                part.is_part = True
                self._finish(part)

    def _fail_texts(self, batch: Batch, error: Exception, *, out_of_memory: bool = False) -> None:
        """The texts of a batch cannot be embedded, and neither can their twins."""
        followers = self._listener.batch_landed(batch, keep=False)
        leaders = [
            (segment.job, segment.chunk, place)
            for segment in batch.segments
            for place in range(segment.start, segment.stop)
            if not segment.is_unfinished
        ]
        for job, chunk, place in (*leaders, *itertools.chain(*followers.values())):
            row = int(chunk.rows[place])
            failure = _failure(row, int(chunk.lengths[place]), error, out_of_memory=out_of_memory)
            job.fail(row, failure)
        others = "" if batch.texts == 1 else f" (and {batch.texts - 1} others of its batch)"
        logger.warning("a text failed: %s%s", failure, others)
        self._end_completed(batch, followers)


def _jobs(batch: Batch, followers: Mapping[int, Sequence[Duplicate]]) -> Iterable[Request]:
    """The jobs that have texts in a batch or texts that follow those, each once."""
    following = {job.id: job for texts in followers.values() for job, *_ in texts}
    return ({job.id: job for job in batch.jobs} | following).values()


def _is_divisible(batch: Batch) -> bool:
    """Whether batches that take less memory could do the same."""
    return batch.texts > 1 or any(segment.is_unfinished for segment in batch.segments)


def _failure(row: int, tokens: int, error: Exception, *, out_of_memory: bool) -> TextFailed:
    failure: TextFailed
    if out_of_memory:
        failure = OutOfMemory(
            f"its {tokens} tokens do not fit in memory even alone; lower max_length or free "
            "memory on the device",
            index=row,
        )
    else:
        failure = TextFailed(
            f"the model failed on it with {type(error).__name__}: {error}", index=row
        )
    failure.__cause__ = error
    return failure


def _note_start(job: Request, launched_s: float) -> None:
    if job.started_s is None:
        job.started_s = max(launched_s, job.arrived_s)


def _deliver(batch: Batch, vectors: npt.NDArray[np.float32]) -> int:
    """Write the vectors of a batch to its jobs; how many were not finite is returned."""
    place = failed = 0
    for segment in batch.segments:
        stop = place + segment.texts
        if not segment.is_unfinished:
            failed += _write(segment.job, segment.chunk, segment.start, vectors[place:stop])
        segment.job.spent(tokenize_s=_tokenize_s(segment))
        place = stop
    return failed


def _write(job: Request, chunk: TokenChunk, start: int, vectors: npt.NDArray[np.float32]) -> int:
    """Write vectors of texts of a chunk, from `start` on; how many were not finite is returned."""
    texts = chunk.rows[start : start + len(vectors)]
    with np.errstate(all="ignore"):  # what comes of it is looked at below
        output_rows = job.output.rows(vectors)
    computed, finite = _finite(vectors), _finite(output_rows)
    finite &= computed
    if finite.all():
        job.write(texts, output_rows)
        return 0
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
    if segment.is_unfinished:
        return 0.0
    return segment.chunk.tokenize_s * segment.texts / len(segment.chunk)


def _stats(
    batch: Batch, padded_tokens: int, forward_s: float, *, failed: int, twins: int
) -> BatchStats:
    return BatchStats(
        interactive_texts=batch.lane_texts(Priority.INTERACTIVE),
        bulk_texts=batch.lane_texts(Priority.BULK),
        twin_texts=twins,
        tokens=batch.tokens,
        cached_tokens=batch.cached_tokens,
        padded_tokens=padded_tokens,
        queue_s=batch.queue_s,
        tokenize_s=sum(map(_tokenize_s, batch.segments)),
        forward_s=forward_s,
        failed_texts=failed,
    )
