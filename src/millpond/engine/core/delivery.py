"""`Delivery`: the vectors of a forward pass, or its error, to the requests that wait for them.

It holds no lock, and knows neither the scheduler nor the threads.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import NonFiniteVector, OutOfMemory, TextFailed
from ...outputs import Output, RaggedRows, Rows
from ...scheduler.batch import Batch, Segment
from ...scheduler.deduplication import Duplicate
from ...scheduler.request import Priority, Request
from ...stats import BatchStats, EngineStats, PrefixCacheStats, StatsHooks
from .executor import BatchResult, ForwardPass

__all__ = ["Counts", "Delivery", "delivered", "finite_texts"]

logger = logging.getLogger("millpond")

SUMMED = ("deduplicated_texts", "tokens", "cached_tokens", "padded_tokens", "forward_s")

Duplicates = Mapping[int, Sequence[Duplicate]]


class Delivery:
    """Writes what a forward pass gave to the requests of its texts, and of their duplicates."""

    def __init__(self, forward: ForwardPass) -> None:
        self.batch = forward.batch
        self._pass = forward
        self._failed_texts = 0
        self.duplicates: Duplicates = {}
        """Texts that wait for those of the batch, by their place in it."""
        vectors = forward.vectors
        self._finite = None if vectors is None else finite_texts(vectors)
        self.is_finite = self._finite is not None and bool(self._finite.all())

    def deliver(self) -> None:
        """Write the texts of the batch itself."""
        for request in self.batch.requests:
            request.ran(self._pass.launched_s, self._pass.forward_s)
        if self._pass.vectors is None:
            self._fail(_texts_of(self.batch))
        else:
            self._failed_texts += self._write_all(self._pass.vectors)

    def _write_all(self, vectors: Rows) -> int:
        """Write the texts of the batch; how many were not finite is returned.

        Of texts that follow each other and whose calls want the same, rows are made together.
        """
        assert self._finite is not None
        first = failed = 0
        for _, run in itertools.groupby(self.batch.segments, key=_output_id):
            segments = list(run)
            stop = first + sum([each.stop - each.start for each in segments])
            output = segments[0].request.output
            made = _MadeRows.of(output, vectors[first:stop], self._finite[first:stop])
            place = 0
            for segment in segments:
                if segment.until is None:
                    failed += made.write(segment, place)
                place += segment.stop - segment.start
            first = stop
        return failed

    def deliver_duplicates(self) -> None:
        """Write the texts that wait for those of the batch."""
        if self._pass.vectors is None:
            self._fail(itertools.chain(*self.duplicates.values()))
            return
        for request in self._waiting():
            if request not in self.batch.requests:
                request.ran(self._pass.launched_s, self._pass.forward_s)
        assert self._finite is not None
        for place, texts in self.duplicates.items():
            vector = self._pass.vectors[place : place + 1]
            finite = self._finite[place : place + 1]
            for request, chunk, at in texts:
                made = _MadeRows.of(request.output, vector, finite)
                self._failed_texts += made.write(Segment(request, chunk, at, at + 1), 0)

    def _waiting(self) -> Sequence[Request]:
        """The requests of texts that wait for those of the batch, each once."""
        texts = itertools.chain(*self.duplicates.values())
        return list(dict.fromkeys(request for request, *_ in texts))

    def _fail(self, texts: Iterable[Duplicate]) -> None:
        assert self._pass.error is not None
        failure = None
        for request, chunk, place in texts:
            row = int(chunk.rows[place])
            failure = _failure(row, int(chunk.lengths[place]), self._pass)
            request.fail(row, failure)
        if failure is not None:
            others = "" if self.batch.texts == 1 else f" (and {self.batch.texts - 1} others)"
            logger.warning("a text failed: %s%s", failure, others)

    @property
    def requests(self) -> Iterable[Request]:
        """Those that texts were delivered to, each once."""
        return dict.fromkeys((*self.batch.requests, *self._waiting()))

    @cached_property
    def stats(self) -> BatchStats | None:
        """The counts of the pass, once all of it is delivered; None if it failed."""
        if self._pass.vectors is None:
            return None
        batch = self.batch
        return BatchStats(
            interactive_texts=batch.texts_at(Priority.INTERACTIVE),
            bulk_texts=batch.texts_at(Priority.BULK),
            deduplicated_texts=sum(map(len, self.duplicates.values())),
            tokens=batch.tokens,
            cached_tokens=batch.cached_tokens,
            padded_tokens=self._pass.padded_tokens,
            queue_s=batch.queue_s,
            tokenize_s=sum(map(_tokenize_s, batch.segments)),
            forward_s=self._pass.forward_s,
            failed_texts=self._failed_texts,
        )


def delivered(result: BatchResult) -> Sequence[Delivery]:
    """What came of a batch, its own texts delivered."""
    deliveries = [Delivery(one) for one in result.passes]
    for delivery in deliveries:
        delivery.deliver()
    return deliveries


class Counts:
    """What an engine has delivered so far, and the hooks that are called with it.

    The sums are under the engine's lock; hooks are called without it.
    """

    def __init__(self, hooks: StatsHooks) -> None:
        self._hooks = hooks
        self._sums: dict[str, Any] = dict.fromkeys(
            ("batches", "texts", "failed_texts", "truncated_texts", *SUMMED), 0
        )
        self._warned_of: int | None = None  # the first request to be truncated, by its id

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Under the lock: count what forward passes gave."""
        sums = self._sums
        for delivery in deliveries:
            if (one := delivery.stats) is not None:
                computed = one.interactive_texts + one.bulk_texts
                sums["batches"] += 1
                sums["texts"] += computed + one.deduplicated_texts - one.failed_texts
                for name in SUMMED:
                    sums[name] += getattr(one, name)

    def add_request(self, request: Request) -> None:
        """Under the lock: count a request that is complete."""
        truncated = request.truncated.tobytes().count(1)
        if truncated and not request.reports_truncation and self._warned_of is None:
            self._warned_of = request.id
        self._sums["truncated_texts"] += truncated
        for error in request.errors.values():
            self._sums["failed_texts"] += isinstance(error, TextFailed)

    def call_hooks(self, deliveries: Iterable[Delivery]) -> None:
        """Tell of every pass that did not fail."""
        if self._hooks.registered:
            for delivery in deliveries:
                if delivery.stats is not None:
                    self._hooks.call(delivery.stats)

    def warn_of_truncation(self, request: Request) -> None:
        """Log that its texts were truncated, if it is the engine's first."""
        if request.id == self._warned_of:
            logger.warning(
                "%d of %d texts were longer than the model reads and were truncated: split long "
                "texts before, or give the engine a larger max_length if the model was trained on "
                "it (logged once; every result says which of its texts were)",
                int(request.truncated.sum()),
                len(request),
            )

    def stats(
        self,
        waiting_tokens: Mapping[Priority, int],
        *,
        cancelled_texts: int,
        replicas: int,
        prefix_cache: PrefixCacheStats | None,
    ) -> EngineStats:
        """Under the lock: the sums, with what is waiting now."""
        return EngineStats(
            **self._sums,
            cancelled_texts=cancelled_texts,
            waiting_interactive_tokens=waiting_tokens[Priority.INTERACTIVE],
            waiting_bulk_tokens=waiting_tokens[Priority.BULK],
            replicas=replicas,
            prefix_cache=prefix_cache,
        )


def _texts_of(batch: Batch) -> Iterable[Duplicate]:
    """Each text of a batch that the batch finishes."""
    return (
        (segment.request, segment.chunk, place)
        for segment in batch.segments
        for place in range(segment.start, segment.stop)
        if not segment.is_unfinished
    )


def _failure(row: int, tokens: int, forward: ForwardPass) -> TextFailed:
    error = forward.error
    failure: TextFailed
    if forward.out_of_memory:
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


def finite_texts(rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether all numbers of each text are finite, bool `[texts]`."""
    if isinstance(rows, RaggedRows):
        return np.array([bool(np.isfinite(each).all()) for each in rows], dtype=np.bool_)
    return np.asarray(np.isfinite(rows).all(axis=1))


def _output_id(segment: Segment) -> int:
    return id(segment.request.output)


@dataclass(frozen=True, slots=True)
class _MadeRows:
    """What an output made of vectors of one pass."""

    rows: Any
    computed: npt.NDArray[np.bool_]
    """Which vectors are finite as the model gave them."""
    finite: npt.NDArray[np.bool_]
    """Which rows are, too."""
    all_finite: bool

    @classmethod
    def of(cls, output: Output, vectors: Rows, computed: npt.NDArray[np.bool_]) -> _MadeRows:
        with np.errstate(all="ignore"):  # what comes of it is looked at below
            rows = output.rows(vectors)
        finite = computed if rows is vectors else finite_texts(rows) & computed
        return cls(rows, computed, finite, bool(finite.all()))

    def write(self, segment: Segment, place: int) -> int:
        """Write a segment's texts, whose rows begin at a place; how many are not finite."""
        request, chunk, start, stop, *_ = segment
        texts, seconds = chunk.rows[start:stop], _tokenize_s(segment)
        rows = self.rows[place : place + len(texts)]
        if self.all_finite:
            request.write(texts, rows, tokenize_s=seconds)
            return 0
        finite = self.finite[place : place + len(texts)]
        request.write(texts[finite], rows[finite], tokenize_s=seconds)
        for which in np.flatnonzero(~finite).tolist():
            reason = (
                request.output.overflow_advice
                if self.computed[place + which]
                else "the model gave NaN or infinity for it; try dtype='bfloat16' or 'float32'"
            )
            row = int(texts[which])
            request.fail(row, NonFiniteVector(reason, index=row))
        return len(texts) - int(finite.sum())


def _tokenize_s(segment: Segment) -> float:
    """The segment's share of the time its chunk took to tokenise."""
    _, chunk, start, stop, _, until, _ = segment
    return chunk.tokenize_s * (stop - start) / len(chunk.rows) if until is None else 0.0
