"""`Request`, one call and its progress.

A request is one object with one future and one array of rows, however many texts it has.
"""

from __future__ import annotations

import enum
import functools
import itertools
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import InvalidStateError
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import DeadlineExceeded, InvalidInput, MillpondError, TextFailed
from ..outputs import CallResult, Output, Timings
from ..pair import Pair
from ..stats import CallProgress, ProgressHook, is_callers_interrupt
from .prefix_cache import BlockAllocation
from .request_future import RequestFuture
from .token_chunk import TokenChunk

__all__ = ["PendingSpan", "Priority", "Request", "TruncateSide"]

TruncateSide = Literal["end", "start", "error"]
CHARACTERS_PER_TOKEN = 4  # a guess for the queue bound, replaced when the text is tokenised
ONE_TEXT = np.zeros(1, dtype=np.int64)  # the order of a single text, which is never changed
ONE_TEXT.flags.writeable = False
_request_ids = itertools.count()
logger = logging.getLogger("millpond")


class Priority(enum.Enum):
    """Who is waiting: a person, or an index build."""

    INTERACTIVE = "interactive"
    BULK = "bulk"

    __hash__ = object.__hash__  # that of enums is in Python, and each query asks six times


@dataclass(slots=True, eq=False)
class PendingSpan:
    """The texts `start:stop` of a chunk that no batch has taken yet."""

    chunk: TokenChunk
    start: int
    stop: int
    ready_s: float
    """When they became ready, on the engine's clock."""
    claim: BlockAllocation | None = None
    """Of a single text of which a part is computed: the blocks that hold it."""
    in_one_batch: bool = False
    """Whether a part of its text was no good: then all of it goes into one batch."""
    is_rest: bool = False
    """Whether it is a text of which a batch was to compute a part."""

    @property
    def tokens(self) -> int:
        """Tokens of its texts, those of a text that is computed in part included."""
        return self.chunk.tokens(self.start, self.stop)

    def release(self) -> None:
        """Let go of what holds the part that is computed."""
        assert self.claim is not None
        assert self.claim.cache is not None
        self.claim.cache.release(self.claim)
        self.claim = None

    @property
    def computed_tokens(self) -> int:
        """Tokens that earlier batches have computed of a text that takes several."""
        return 0 if self.claim is None else self.claim.cached_so_far


@dataclass(eq=False, repr=False)
class Request:
    """One call: its texts, its future, and the array its vectors are written to.

    The queue side (`order`, `cursor`, `spans`, `waiting_tokens`, `admitted`, `dead`) belongs to
    the scheduler and changes only under the engine's lock. The result side (`rows`, `errors`,
    `remaining`, times) is written by whichever workers run its batches, under its own lock.
    """

    texts: Sequence[str] | Sequence[npt.NDArray[np.int32]] | Sequence[Pair]
    _: KW_ONLY
    priority: Priority
    output: Output
    route: int = 0
    prompt: str = ""
    task: str | None = None
    """For chat templates that ask for it."""
    prompt_tokens: int = 0
    shared_tokens: int = 0
    """Leading ones that texts with this prompt share."""
    is_pinned: bool = False
    """Whether they stay in a prefix cache for good."""
    truncate: TruncateSide | Literal["document"] | None = None
    max_length: int | None = None
    most_tokens: InitVar[int | None] = None
    """Of a text that count in the queue: one that will be cut would fill it for others."""
    reads_tokens: int | None = None
    """Of a text at most, as far as the model knows itself."""
    tokenized: bool = False
    progress: ProgressHook | None = None
    reports_truncation: bool = False
    """Whether `progress` says it to the user."""
    arrived_s: float = 0.0
    deadline_s: float | None = None
    refused: InitVar[Mapping[int, InvalidInput] | None] = None
    """Errors of texts that cannot be accepted, which are not run."""
    strict: bool = False
    """Whether one more of those ends the whole request."""

    def __post_init__(
        self, most_tokens: int | None, refused: Mapping[int, InvalidInput] | None
    ) -> None:
        self.id = next(_request_ids)
        self.errors: dict[int, TextFailed | InvalidInput] = dict(refused or {})
        self._be_queued(most_tokens)
        self._expect_results()

    def _be_queued(self, most_tokens: int | None) -> None:
        if len(self.texts) == 1 and not self.errors:
            size = len(self.texts[0])
            guess = size if self.tokenized else size // CHARACTERS_PER_TOKEN + 2
            self.waiting_tokens = guess if most_tokens is None else min(guess, most_tokens)
            self.size_guesses = np.array([self.waiting_tokens])
            self.order = ONE_TEXT
        else:
            self._order_by_size(most_tokens)
        self.cursor = 0
        self.spans: deque[PendingSpan] = deque()
        self.admitted = False
        self.dead = False  # nothing more of it is planned

    def _order_by_size(self, most_tokens: int | None) -> None:
        sizes = np.fromiter(map(len, self.texts), dtype=np.int64, count=len(self))
        guesses = sizes if self.tokenized else sizes // CHARACTERS_PER_TOKEN + 2
        self.size_guesses = guesses if most_tokens is None else np.minimum(guesses, most_tokens)
        self.size_guesses[list(self.errors)] = 0
        order = np.argsort(-sizes, kind="stable")
        self.order = order[~np.isin(order, list(self.errors))] if self.errors else order
        self.waiting_tokens = int(self.size_guesses.sum())

    def _expect_results(self) -> None:
        self._future: RequestFuture | None = None
        self.own_result: CallResult | None = None
        """What its caller's thread has computed itself, and then need not wait for."""
        self._result_lock = threading.Lock()
        self.rows = self.output.allocate(len(self))
        self.token_counts = np.zeros(len(self), dtype=np.int32)
        self.truncated = np.zeros(len(self), dtype=np.bool_)
        self.remaining = len(self) - len(self.errors)
        self.started_s: float | None = None
        self.tokenize_s = 0.0
        self.forward_s = 0.0

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def future(self) -> RequestFuture:
        """What its caller waits for. It is made by the caller, before other threads know of it."""
        if self._future is None:
            future = RequestFuture()
            if self.own_result is not None:
                future.set_result(self.own_result)
            self._future = future
        return self._future

    @property
    def untokenized(self) -> int:
        """Texts that no one has started to tokenise."""
        return len(self.order) - self.cursor

    def guessed_tokens(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> int:
        """Tokens of these texts, by what was guessed of each."""
        if len(rows) == 1:
            return int(self.size_guesses[rows[0]])
        return int(self.size_guesses[rows].sum())

    def next_rows(self, most_tokens: int) -> npt.NDArray[np.int64]:
        """Claim the next texts to tokenise: about `most_tokens` by guess, at least one."""
        if self.untokenized == 1:
            self.cursor += 1
            return self.order[-1:]
        guesses = np.cumsum(self.size_guesses[self.order[self.cursor : self.cursor + most_tokens]])
        count = max(1, int(np.searchsorted(guesses, most_tokens, side="right")))
        rows = self.order[self.cursor : self.cursor + count]
        self.cursor += len(rows)
        return rows

    def adopt(self, chunk: TokenChunk, now_s: float) -> None:
        """Take in all texts at once, tokenised before the request was submitted."""
        self.cursor = len(self.order)
        self.waiting_tokens = len(chunk.ids)
        self.spans.append(PendingSpan(chunk, 0, len(chunk), now_s))

    def write(
        self, rows: npt.NDArray[np.int64], output_rows: Any, *, tokenize_s: float = 0.0
    ) -> None:
        """Keep what `output.rows` made of the vectors of these texts, tokenised in that time."""
        with self._result_lock:
            self.output.store(self.rows, rows, output_rows)
            self.tokenize_s += tokenize_s
        self._finished(rows)

    def let_in(self) -> None:
        """It is admitted to its queue."""
        self.admitted = True
        self.future.admit()

    def fail(self, row: int, error: TextFailed | InvalidInput) -> None:
        """Keep a text's error in place of its vector."""
        with self._result_lock:
            self.errors[row] = error
        self._finished(np.array([row]))

    def ran(self, launched_s: float, forward_s: float) -> None:
        """A pass that holds some of it was launched then, and took so long."""
        with self._result_lock:
            if self.started_s is None:
                self.started_s = max(launched_s, self.arrived_s)
            self.forward_s += forward_s

    def _finished(self, rows: npt.NDArray[np.int64]) -> None:
        if self.progress is not None:
            self._tell(rows)  # first, so that a call does not end before all of it is told
        with self._result_lock:
            self.remaining -= len(rows)

    def _tell(self, rows: npt.NDArray[np.int64]) -> None:
        """Tell of texts that have ended, with no lock held."""
        assert self.progress is not None
        done = CallProgress(
            texts=len(rows),
            truncated=int(self.truncated[rows].sum()),
            share=float(self._efforts[rows].sum()),
        )
        try:
            self.progress(done)
        except BaseException as error:  # a terminal that is gone stops no other's work
            if is_callers_interrupt(error):
                raise
            logger.debug("a progress function raised; the engine goes on", exc_info=True)

    @functools.cached_property
    def _efforts(self) -> npt.NDArray[np.float64]:
        """The share of the work that each text is: nothing is done beyond what the model reads."""
        efforts = np.minimum(self.size_guesses, self.reads_tokens or np.inf)
        shares: npt.NDArray[np.float64] = efforts / max(1.0, efforts.sum())
        return shares

    def finish(self, error: MillpondError | None = None, *, result_s: float = 0.0) -> None:
        """End its future with an error or its result, unless its caller cancelled it.

        Called by the one who took it out of those that are pending. It raises nothing, whatever
        waits for the future: other requests are still to be finished.
        """
        future = self.future
        try:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(self.result(result_s))
        except InvalidStateError:  # its caller has cancelled it, and others may wait for that
            future.set_running_or_notify_cancel()
        except BaseException:
            logger.exception("the end of a call raised; the engine goes on")
        future.admit()

    def deadline_error(self) -> DeadlineExceeded:
        """Its time is over."""
        return DeadlineExceeded(
            f"the call's timeout passed with {len(self) - self.remaining} of its {len(self)} texts "
            "done; allow more time or send fewer texts"
        )

    def result(self, now_s: float) -> CallResult:
        """What the future resolves to once nothing remains."""
        started_s = now_s if self.started_s is None else self.started_s
        return self.output.result(
            self.rows,
            token_counts=self.token_counts,
            truncated=self.truncated,
            errors=self.errors,
            timings=Timings(
                queue_s=started_s - self.arrived_s,
                tokenize_s=self.tokenize_s,
                forward_s=self.forward_s,
                total_s=now_s - self.arrived_s,
            ),
        )

    def __repr__(self) -> str:
        return (
            f"Request(id={self.id}, priority={self.priority.value}, texts={len(self)}, "
            f"untokenized={self.untokenized}, remaining={self.remaining}, dead={self.dead})"
        )
