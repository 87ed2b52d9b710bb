"""Pairs scored by token vectors: queries and documents are embedded once each, side by side.

It makes the two requests of a call and one future of their results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...checkpoint.spec import ModelSpec
from ...errors import DeadlineExceeded, InvalidInput, TextFailed
from ...multi_vector.late_scores import DocumentScores, LateScoreOutput
from ...multi_vector.token_embeddings import TokenEmbeddings
from ...outputs import Timings
from ...pair import Pair
from ...scheduler.request import Request, TruncateSide
from ...scheduler.request_future import GuardedFuture, RequestFuture
from ...scores import ACTIVATIONS, Scores
from ..params.embed import Texts
from ..params.score import ScoreParams
from ..params.token import TokenParams

__all__ = ["LateFuture", "LateInteraction", "LateRequest", "submit_late"]

Send = Callable[[Sequence[str], TokenParams], Request]
"""Hands texts in as a request."""


@dataclass(frozen=True, kw_only=True)
class _DocumentParams(TokenParams):
    """The options of the documents' request."""

    pairs: Sequence[Sequence[tuple[int, int]]] = ()
    queries: Callable[[], Any] = lambda: None

    def output(self, spec: ModelSpec, dimension: int) -> Any:
        assert spec.multi_vector is not None
        return LateScoreOutput(
            vectors=super().output(spec, dimension),
            pairs=self.pairs,
            queries=self.queries,
            mean=spec.multi_vector.similarity == "meanmaxsim",
        )


@dataclass(frozen=True)
class LateInteraction:
    """The texts of pairs, each once, and which pair is of which."""

    queries: list[str]
    documents: list[str]
    pairs: list[tuple[int, int, int]]
    """Of each pair that was accepted: its place, its query and its document."""
    refused: Mapping[int, InvalidInput] = field(default_factory=dict)
    total: int = 0

    @classmethod
    def of(cls, taken: Texts) -> LateInteraction:
        """Of pairs that a caller handed in."""
        queries: dict[str, int] = {}
        documents: dict[str, int] = {}
        pairs = []
        for place, pair in enumerate(taken.items):
            if place not in taken.refused:
                assert isinstance(pair, Pair)
                query = queries.setdefault(pair.query, len(queries))
                document = documents.setdefault(pair.document, len(documents))
                pairs.append((place, query, document))
        return cls(list(queries), list(documents), pairs, taken.refused, len(taken.items))

    @property
    def of_documents(self) -> list[list[tuple[int, int]]]:
        """Of each document in which accepted pairs it stands, and with which query."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.documents]
        for index, (_, query, document) in enumerate(self.pairs):
            found[document].append((index, query))
        return found

    def first_pair(self, *, query: int | None = None, document: int | None = None) -> int:
        """The place of the first pair with a query, or with a document."""
        return next(p for p, q, d in self.pairs if query == q or document == d)

    def scores(
        self, queries: TokenEmbeddings, documents: DocumentScores, activation: str, label: str
    ) -> Scores:
        """The result of the call."""
        rows = np.full((self.total, 1), np.nan, dtype=np.float32)
        tokens = np.zeros(self.total, dtype=np.int32)
        truncated = np.zeros(self.total, dtype=np.bool_)
        errors: dict[int, TextFailed | InvalidInput] = dict(self.refused)
        for place, query, document in self.pairs:
            tokens[place] = queries.token_counts[query] + documents.token_counts[document]
            truncated[place] = queries.truncated[query] or documents.truncated[document]
            error = queries.errors.get(query) or documents.errors.get(document)
            if error is not None:
                errors[place] = error.at(place)
        places = [place for place, *_ in self.pairs]
        found = documents.output.finish(documents.rows, queries.rows)
        rows[places, 0] = ACTIVATIONS[activation](found.astype(np.float64))
        return Scores(
            labels=(label,),
            rows=rows,
            token_counts=tokens,
            truncated=truncated,
            errors=errors,
            timings=_longest(queries.timings, documents.timings),
        )


def _longest(one: Timings, other: Timings) -> Timings:
    """Of two requests that ran side by side."""
    return Timings(
        queue_s=max(one.queue_s, other.queue_s),
        tokenize_s=one.tokenize_s + other.tokenize_s,
        forward_s=one.forward_s + other.forward_s,
        total_s=max(one.total_s, other.total_s),
    )


def _nothing() -> Scores:
    raise AssertionError("it has ended")


class LateFuture(GuardedFuture[Scores]):
    """The future of such a call. Cancelling it takes out the texts that have not run."""

    def __init__(self, requests: Sequence[Request], combine: Callable[[], Scores]) -> None:
        super().__init__()
        self._requests: tuple[RequestFuture, ...] = tuple(each.future for each in requests)
        self._combine = combine
        self._turn = iter((True,))  # who takes it ends the future: one operation, needs no lock
        for future in self._requests:
            future.add_done_callback(self._one_ended)

    def _one_ended(self, ended: Future[Any]) -> None:
        failed = ended.cancelled() or ended.exception() is not None
        if failed:
            for other in self._requests:
                other.cancel()
        if not all(future.done() for future in self._requests) or not next(self._turn, False):
            return
        # Their callbacks hold this future: what is not let go here would be kept for long.
        combine, self._combine, self._requests = self._combine, _nothing, ()
        if not self.set_running_or_notify_cancel():
            return
        try:
            result = combine()
        except BaseException as error:  # of a request
            self.set_exception(error)
        else:
            self.set_result(result)

    def cancel(self) -> bool:
        """End it, unless it has ended."""
        cancelled = super().cancel()
        for future in self._requests:
            future.cancel()
        return cancelled

    def require_may_wait(self) -> None:
        for future in self._requests:
            future.require_may_wait()


@dataclass(frozen=True)
class LateRequest:
    """What stands for both requests of a call."""

    future: LateFuture
    requests: tuple[Request, Request]
    own_result = None

    def deadline_error(self) -> DeadlineExceeded:
        """Its time is over."""
        return self.requests[1].deadline_error()


def submit_late(taken: Texts, params: ScoreParams, spec: ModelSpec, send: Send) -> LateRequest:
    """Both requests of a call. Raises what `send` raises, and then neither runs."""
    assert spec.multi_vector is not None
    label = spec.multi_vector.similarity
    params.validate(spec, pairs=True)
    call = LateInteraction.of(taken)
    common: dict[str, Any] = {
        "priority": params.priority_of(taken),
        "timeout": params.timeout,
    }
    activation = "none" if params.activation == "auto" else params.activation
    sides = _sides(params)
    of_queries = TokenParams(
        task="query",
        prompt=params.prompt,
        prompt_name=params.prompt_name,
        truncate=sides[0],
        **common,
    )
    queries = send(call.queries, of_queries)
    of_documents = _DocumentParams(
        task="document",
        truncate=sides[1],
        pairs=call.of_documents,
        queries=_vectors_of(queries.future),
        **common,
    )
    try:
        documents = send(call.documents, of_documents)
    except BaseException:
        queries.future.cancel()
        raise

    def combine() -> Scores:
        _raise_error(queries.future, lambda query: call.first_pair(query=query))
        _raise_error(documents.future, lambda document: call.first_pair(document=document))
        found: Any = queries.future.result()
        scored: Any = documents.future.result()
        return call.scores(found, scored, activation, label)

    return LateRequest(LateFuture((queries, documents), combine), (queries, documents))


def _sides(params: ScoreParams) -> tuple[TruncateSide | None, TruncateSide | None]:
    """Where queries and documents are cut that are too long."""
    if params.truncate == "document":
        return "error", None
    return params.truncate, params.truncate


def _vectors_of(queries: RequestFuture) -> Callable[[], Any]:
    def vectors() -> Any:
        if not queries.done() or queries.cancelled() or queries.exception() is not None:
            return None
        result: Any = queries.result()
        return result.rows

    return vectors


def _raise_error(future: RequestFuture, pair_of: Callable[[int], int]) -> None:
    """Raise that of a request, unless it was cancelled since the other one failed.

    An error about a text is about the first pair that it is in.
    """
    error = None if future.cancelled() else future.exception()
    if isinstance(error, InvalidInput):
        raise error.at(pair_of(error.index)) from error.__cause__
    if error is not None:
        raise error
