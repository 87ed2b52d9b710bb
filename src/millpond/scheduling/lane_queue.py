"""`LaneQueue`, the jobs of one lane from their arrival to their last batch.

    arrived ──▶ waiting room ──▶ admitted: texts to tokenise ──▶ texts ready ──▶ batch
                (no room yet)

Every method is called under the engine's lock. Time is never read here: it is passed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .batch import Segment
from .job import Chunk, Job, Span

__all__ = ["BatchShape", "LaneQueue", "Plan"]

MOST_MISFITS = 32  # jobs passed over for one batch before it is good enough as it is


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How the texts of one route stand in a batch.

    `pad_to=None` packs them end to end. Otherwise all texts of a batch are padded to one length:
    their own, rounded up to a multiple of `pad_to` and no more than `max_length`. It depends on
    nothing but the text, so company cannot change the arithmetic.
    """

    pad_to: int | None = None
    max_length: int | None = None

    def padded_length(self, length: int) -> int | None:
        """The length a text of `length` tokens is padded to, or None when packed."""
        if self.pad_to is None:
            return None
        rounded = -(-length // self.pad_to) * self.pad_to
        return rounded if self.max_length is None else max(length, min(rounded, self.max_length))


@dataclass
class Plan:
    """A batch in the making."""

    shapes: tuple[BatchShape, ...]
    tokens_left: int
    now_s: float
    route: int | None = None
    padded_length: int | None = None
    oldest_ready_s: float = float("inf")
    segments: list[Segment] = field(default_factory=list)

    def fit(self, job: Job, span: Span) -> int:
        """How many of the span's first texts still go in. The first text always does."""
        if self.route not in (None, job.route):
            return 0
        shape = self.shapes[job.route]
        packed = shape.pad_to is None
        count = self._packed_fit(span) if packed else self._padded_fit(span, shape)
        return max(count, 0 if self.segments else 1)

    def _packed_fit(self, span: Span) -> int:
        offsets = span.chunk.offsets
        end = offsets[span.start] + self.tokens_left
        return int(np.searchsorted(offsets[: span.stop + 1], end, side="right")) - 1 - span.start

    def _padded_fit(self, span: Span, shape: BatchShape) -> int:
        lengths = span.chunk.lengths[span.start : span.stop]
        padded = shape.padded_length(int(lengths[0])) or 1
        if self.padded_length not in (None, padded):
            return 0
        return min(_leading(lengths, padded, shape), self.tokens_left // padded)

    def take(self, job: Job, span: Span, count: int) -> int:
        """Move texts into the plan; their real tokens are returned."""
        segment = Segment(job, span.chunk, span.start, span.start + count)
        longest = int(span.chunk.lengths[span.start])
        self.route = job.route
        self.padded_length = self.shapes[job.route].padded_length(longest)
        padded = self.padded_length
        self.tokens_left -= segment.tokens if padded is None else count * padded
        self.oldest_ready_s = min(self.oldest_ready_s, span.ready_s)
        self.segments.append(segment)
        span.start += count
        return segment.tokens


def _leading(lengths: npt.NDArray[np.int64], padded: int, shape: BatchShape) -> int:
    """How many of these descending lengths are padded to the same length as the first."""
    assert shape.pad_to is not None
    shorter = (padded - 1) // shape.pad_to * shape.pad_to
    return int(np.searchsorted(-lengths, -shorter, side="left"))


class LaneQueue:
    """The waiting jobs of one lane, bounded in tokens."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.waiting_tokens = 0  # admitted and not yet in a batch; guessed until tokenised
        self.ready_tokens = 0
        self._room: deque[Job] = deque()  # not admitted yet
        self._untokenized: deque[Job] = deque()
        self._ready: deque[Job] = deque()  # each has spans, or is dead and skipped when reached

    def has_room_for(self, job: Job) -> bool:
        """Whether the job would be admitted now. One larger than the bound goes in alone."""
        return not self._room and self._fits(job)

    def _fits(self, job: Job) -> bool:
        tokens = self.waiting_tokens + job.waiting_tokens
        return self.waiting_tokens == 0 or tokens <= self.max_tokens

    def enter(self, job: Job) -> None:
        """Take a job in: admitted now if there is room, else when there is, in order."""
        self._room.append(job)
        self.admit()

    def admit(self) -> bool:
        """Let in who fits; whether anyone did."""
        before = len(self._room)
        while self._room and self._fits(self._room[0]):
            job = self._room.popleft()
            job.admitted = True
            self.waiting_tokens += job.waiting_tokens
            if job.untokenized:
                self._untokenized.append(job)
            if job.spans:
                self.ready_tokens += _span_tokens(job)
                self._ready.append(job)
        return len(self._room) < before

    def next_to_tokenize(self, most_tokens: int) -> tuple[Job, npt.NDArray[np.int64]] | None:
        """Claim texts to tokenise, from each job in turn."""
        while self._untokenized:
            job = self._untokenized.popleft()
            if job.dead:
                continue
            rows = job.next_rows(most_tokens)
            if job.untokenized:
                self._untokenized.append(job)
            return job, rows
        return None

    def ready(self, job: Job, chunk: Chunk, now_s: float) -> None:
        """A chunk of an admitted job is tokenised."""
        tokens = int(chunk.offsets[-1])
        correction = tokens - int(job.size_guesses[chunk.rows].sum())
        job.waiting_tokens += correction
        self.waiting_tokens += correction
        self.ready_tokens += tokens
        if not job.spans:
            self._ready.append(job)
        job.spans.append(Span(chunk, 0, len(chunk), now_s))

    def fill(self, plan: Plan) -> None:
        """Move ready texts into the plan, from each job in turn, until it is full."""
        misfits: list[Job] = []
        served: list[Job] = []
        while self._ready and plan.tokens_left > 0 and len(misfits) < MOST_MISFITS:
            job = self._ready.popleft()
            if job.dead:
                continue
            took = self._fill_from(job, plan)
            if job.spans:
                (served if took else misfits).append(job)
        self._ready.extendleft(reversed(misfits))  # they go first next time
        self._ready.extend(served)

    def _fill_from(self, job: Job, plan: Plan) -> bool:
        took = False
        while job.spans:
            span = job.spans[0]
            count = plan.fit(job, span)
            if count == 0:
                break
            tokens = plan.take(job, span, count)
            job.waiting_tokens -= tokens
            self.waiting_tokens -= tokens
            self.ready_tokens -= tokens
            took = True
            if span.start < span.stop:
                break
            job.spans.popleft()
        return took

    def forget(self, job: Job) -> None:
        """Take everything of a job out. What a batch already holds is that batch's to drop."""
        if job.admitted:
            self.waiting_tokens -= job.waiting_tokens
            self.ready_tokens -= _span_tokens(job)
        else:
            self._room.remove(job)
        job.waiting_tokens = 0
        job.spans.clear()
        job.dead = True

    @property
    def has_ready(self) -> bool:
        while self._ready and self._ready[0].dead:
            self._ready.popleft()
        return bool(self._ready)

    def __repr__(self) -> str:
        return (
            f"LaneQueue(waiting_tokens={self.waiting_tokens}, ready_tokens={self.ready_tokens}, "
            f"waiting_room={len(self._room)}, untokenized={len(self._untokenized)}, "
            f"ready={len(self._ready)})"
        )


def _span_tokens(job: Job) -> int:
    return sum(int(s.chunk.offsets[s.stop] - s.chunk.offsets[s.start]) for s in job.spans)
