"""`RequestQueue`, the jobs of one priority from their arrival to their last batch.

    arrived ──▶ waiting room ──▶ admitted: texts to tokenise ──▶ texts ready ──▶ batch
                (no room yet)

Every method is called under the engine's lock. Time is never read here: it is passed in.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from .batch_builder import BatchBuilder
from .prefix_cache import BlockAllocation
from .request import PendingSpan, Request
from .token_chunk import TokenChunk

__all__ = ["RequestQueue"]

MOST_MISFITS = 32  # jobs passed over for one batch before it is good enough as it is


class RequestQueue:
    """The waiting jobs of one priority, bounded in tokens."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.waiting_tokens = 0  # admitted and not yet in a batch; guessed until tokenised
        self.ready_tokens = 0
        self._room: deque[Request] = deque()  # not admitted yet
        self._untokenized: deque[Request] = deque()
        self._ready: deque[Request] = deque()  # each has spans or is dead, but never the first

    def has_room_for(self, job: Request, *, beside: int = 0) -> bool:
        """Whether the job would be admitted now. One larger than the bound goes in alone.

        `beside` are tokens more, or fewer, than wait here: of jobs that are about to come or go.
        """
        return self._fits(job, beside) and all(other.future.cancelled() for other in self._room)

    def _fits(self, job: Request, beside: int = 0) -> bool:
        waiting = self.waiting_tokens + beside
        return waiting == 0 or waiting + job.waiting_tokens <= self.max_tokens

    def enter(self, job: Request) -> None:
        """Take a job in: admitted now if there is room, else when there is, in order."""
        self._room.append(job)
        self.admit()

    def admit(self) -> bool:
        """Let in who fits; whether anyone did."""
        before = len(self._room)
        while self._room and self._fits(self._room[0]):
            job = self._room.popleft()
            job.let_in()
            self.waiting_tokens += job.waiting_tokens
            if job.untokenized:
                self._untokenized.append(job)
            if job.spans:
                self.ready_tokens += _span_tokens(job)
                self._ready.append(job)
        return len(self._room) < before

    def next_to_tokenize(self, most_tokens: int) -> tuple[Request, npt.NDArray[np.int64]] | None:
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

    @property
    def has_untokenized(self) -> bool:
        """Whether texts may be claimed to be tokenised. Jobs that have ended may be among them."""
        return bool(self._untokenized)

    def refuse(self, job: Request, tokens: int) -> None:
        """Texts of an admitted job, of so many tokens by guess, cannot be accepted after all."""
        job.waiting_tokens -= tokens
        self.waiting_tokens -= tokens

    def ready(self, job: Request, chunk: TokenChunk, now_s: float) -> None:
        """A chunk of an admitted job is tokenised."""
        tokens = int(chunk.offsets[-1])
        correction = tokens - int(job.size_guesses[chunk.rows].sum())
        job.waiting_tokens += correction
        self.waiting_tokens += correction
        self.ready_tokens += tokens
        if not job.spans:
            self._ready.append(job)
        job.spans.append(PendingSpan(chunk, 0, len(chunk), now_s))

    def fill(self, plan: BatchBuilder) -> None:
        """Move ready texts into the plan, from each job in turn, until it is full."""
        misfits: list[Request] = []
        served: list[Request] = []
        while self._ready and plan.tokens_left > 0 and len(misfits) < MOST_MISFITS:
            job = self._ready.popleft()
            if job.dead:
                continue
            if not plan.segments:
                plan.waiting_beside = self.ready_tokens - _span_tokens(job)
            took = self._fill_from(job, plan)
            if job.spans:
                (served if took else misfits).append(job)
        self._ready.extendleft(reversed(misfits))  # they go first next time
        self._ready.extend(served)
        self._skip_dead()

    def _skip_dead(self) -> None:
        while self._ready and self._ready[0].dead:
            self._ready.popleft()

    def _fill_from(self, job: Request, plan: BatchBuilder) -> bool:
        took = False
        while job.spans:
            span = job.spans[0]
            before = _tokens(span)
            if not plan.take(job, span):
                break
            self._count(job, _tokens(span) - before)
            took = True
            if span.start == span.stop:
                job.spans.popleft()
        return took

    def put_back(self, job: Request, span: PendingSpan) -> None:
        """Texts that a batch had taken wait again.

        They go first, but the rest of a text that is computed in part takes turns with other jobs.
        """
        if not job.spans and span.is_rest:
            self._ready.append(job)
        elif not job.spans:
            self._ready.appendleft(job)
        job.spans.appendleft(span)
        self._count(job, _tokens(span))

    def _count(self, job: Request, tokens: int) -> None:
        job.waiting_tokens += tokens
        self.waiting_tokens += tokens
        self.ready_tokens += tokens

    def forget(self, job: Request) -> list[BlockAllocation]:
        """Take everything of a job out. What a batch already holds is that batch's to drop.

        Returned are the claims of texts that are computed in part, which nobody needs any more.
        """
        if job.admitted:
            self.waiting_tokens -= job.waiting_tokens
            self.ready_tokens -= _span_tokens(job)
        else:
            self._room.remove(job)
        claims = [span.claim for span in job.spans if span.claim is not None]
        job.waiting_tokens = 0
        job.spans.clear()
        job.dead = True
        self._skip_dead()
        return claims

    @property
    def has_ready(self) -> bool:
        """Whether a text could go into a batch now. Asking changes nothing."""
        return bool(self._ready)

    def __repr__(self) -> str:
        return (
            f"RequestQueue(waiting_tokens={self.waiting_tokens}, ready_tokens={self.ready_tokens}, "
            f"waiting_room={len(self._room)}, untokenized={len(self._untokenized)}, "
            f"ready={len(self._ready)})"
        )


def _span_tokens(job: Request) -> int:
    return sum(map(_tokens, job.spans))


def _tokens(span: PendingSpan) -> int:
    """Tokens of texts in the span, those of a text that is computed in part included."""
    offsets = span.chunk.offsets
    return int(offsets[span.stop] - offsets[span.start])
