"""`RequestQueue`, the requests of one priority from their arrival to their last batch.

    arrived ──▶ unadmitted ──▶ admitted: texts to tokenise ──▶ texts ready ──▶ batch
                (queue full)

Every method is called under the engine's lock. Time is never read here: it is passed in.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from .batch_builder import BatchBuilder
from .prefix_cache import BlockAllocation, PrefixCache
from .request import PendingSpan, Request
from .token_chunk import TokenChunk

__all__ = ["RequestQueue"]

MOST_UNFIT = 32  # requests passed over for one batch before it is good enough as it is


class RequestQueue:
    """The waiting requests of one priority, bounded in tokens."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.waiting_tokens = 0  # admitted and not yet in a batch; guessed until tokenised
        self.ready_tokens = 0
        self._unadmitted: deque[Request] = deque()  # not admitted yet
        self.untokenized: deque[Request] = deque()  # ended ones may be among them
        self.ready_requests: deque[Request] = deque()  # with spans; dead only behind the first

    def has_room_for(self, request: Request, *, beside: int = 0) -> bool:
        """Whether the request would be admitted now. One larger than the bound goes in alone.

        `beside` are tokens more, or fewer, than wait here: of requests about to come or go.
        """
        return self._fits(request, beside) and all(
            other.future.cancelled() for other in self._unadmitted
        )

    def _fits(self, request: Request, beside: int = 0) -> bool:
        waiting = self.waiting_tokens + beside
        return waiting == 0 or waiting + request.waiting_tokens <= self.max_tokens

    def enter(self, request: Request) -> None:
        """Take a request in: admitted now if there is room, else when there is, in order."""
        self._unadmitted.append(request)
        self.admit()

    def admit(self) -> bool:
        """Admit the requests that fit; whether there was one."""
        before = len(self._unadmitted)
        while self._unadmitted and self._fits(self._unadmitted[0]):
            request = self._unadmitted.popleft()
            request.let_in()
            self.waiting_tokens += request.waiting_tokens
            if request.untokenized:
                self.untokenized.append(request)
            if request.spans:
                self.ready_tokens += _span_tokens(request)
                self.ready_requests.append(request)
        return len(self._unadmitted) < before

    def next_to_tokenize(self, most_tokens: int) -> tuple[Request, npt.NDArray[np.int64]] | None:
        """Claim texts to tokenise, from each request in turn."""
        while self.untokenized:
            request = self.untokenized.popleft()
            if request.dead:
                continue
            rows = request.next_rows(most_tokens)
            if request.untokenized:
                self.untokenized.append(request)
            return request, rows
        return None

    def refuse(self, request: Request, tokens: int) -> None:
        """Texts of an admitted request, of about `tokens` tokens, cannot be accepted."""
        request.waiting_tokens -= tokens
        self.waiting_tokens -= tokens

    def ready(self, request: Request, chunk: TokenChunk, now_s: float) -> None:
        """A chunk of an admitted request is tokenised."""
        tokens = len(chunk.ids)
        correction = tokens - request.guessed_tokens(chunk.rows)
        request.waiting_tokens += correction
        self.waiting_tokens += correction
        self.ready_tokens += tokens
        if not request.spans:
            self.ready_requests.append(request)
        request.spans.append(PendingSpan(chunk, 0, len(chunk), now_s))

    def fill(self, builder: BatchBuilder) -> None:
        """Move ready texts into a batch, from each request in turn, until it is full.

        Those of which another cache has a part are left to its replica.
        """
        skipped: list[Request] = []
        served: list[Request] = []
        unfit = 0
        while self.ready_requests and builder.tokens_left > 0 and unfit < MOST_UNFIT:
            request = self.ready_requests.popleft()
            if request.dead:
                continue
            if not builder.segments:
                builder.waiting_beside = self.ready_tokens - _span_tokens(request)
            left = builder.left_parts
            took = self._fill_from(request, builder)
            unfit += not took and left == builder.left_parts
            if request.spans:
                (served if took else skipped).append(request)
        self.ready_requests.extendleft(reversed(skipped))  # they go first next time
        self.ready_requests.extend(served)
        self._skip_dead()

    def _skip_dead(self) -> None:
        while self.ready_requests and self.ready_requests[0].dead:
            self.ready_requests.popleft()

    def _fill_from(self, request: Request, builder: BatchBuilder) -> bool:
        took = False
        while request.spans:
            span = request.spans[0]
            before = span.tokens
            if not builder.take(request, span):
                break
            self._count(request, span.tokens - before)
            took = True
            if span.start == span.stop:
                request.spans.popleft()
        return took

    def put_back(self, request: Request, span: PendingSpan) -> None:
        """Texts that a batch had taken wait again.

        They go first, but the rest of a text that is computed in part takes turns with others.
        """
        if not request.spans and span.is_rest:
            self.ready_requests.append(request)
        elif not request.spans:
            self.ready_requests.appendleft(request)
        request.spans.appendleft(span)
        self._count(request, span.tokens)

    def _count(self, request: Request, tokens: int) -> None:
        request.waiting_tokens += tokens
        self.waiting_tokens += tokens
        self.ready_tokens += tokens

    def release_parts(self, cache: PrefixCache) -> int:
        """A cache is lost: texts of which it has a part begin anew. How many those are."""
        held = [
            span
            for request in self.ready_requests
            for span in request.spans
            if span.claim is not None and span.claim.cache is cache
        ]
        for span in held:
            span.release()
        return len(held)

    def forget(self, request: Request) -> list[BlockAllocation]:
        """Take everything of a request out. What a batch already holds is that batch's to drop.

        Returned are the claims of texts that are computed in part, which are no longer needed.
        """
        if request.admitted:
            self.waiting_tokens -= request.waiting_tokens
            self.ready_tokens -= _span_tokens(request)
        else:
            self._unadmitted.remove(request)
        claims = [span.claim for span in request.spans if span.claim is not None]
        request.waiting_tokens = 0
        request.spans.clear()
        request.dead = True
        self._skip_dead()
        return claims

    def __repr__(self) -> str:
        return (
            f"RequestQueue(waiting_tokens={self.waiting_tokens}, ready_tokens={self.ready_tokens}, "
            f"unadmitted={len(self._unadmitted)}, untokenized={len(self.untokenized)}, "
            f"ready={len(self.ready_requests)})"
        )


def _span_tokens(request: Request) -> int:
    return sum([span.tokens for span in request.spans])
