"""`LateScoreOutput`: token vectors of documents become scores as they come, and are let go.

So a call holds no more vectors than a batch gives, however many documents it ranks. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..outputs import CallResult, RaggedRows
from .token_embeddings import TokenVectorOutput
from .token_vectors import score_documents

__all__ = ["DocumentScores", "LateScoreOutput", "Room"]

FloatArray = npt.NDArray[np.float32]

Queries = Sequence[FloatArray | None]
"""Of each query its vectors; None with an error."""


@dataclass(eq=False)
class Room:
    """What is known of the pairs of a call."""

    scores: FloatArray
    """`[pairs]`, NaN until they are known."""
    waiting: dict[int, FloatArray]
    """Of documents that came before the queries, their vectors."""


@dataclass(frozen=True, kw_only=True)
class LateScoreOutput:
    """What a caller wants of documents: their scores for queries that are embedded meanwhile."""

    vectors: TokenVectorOutput
    pairs: Sequence[Sequence[tuple[int, int]]] = field(repr=False)
    """Of each document, in which pairs it stands, and with which query."""
    queries: Callable[[], Queries | None] = field(repr=False)
    """The vectors of all queries, or None as long as they are not there."""
    mean: bool
    """Whether a score is divided by the vectors of its query."""

    @property
    def overflow_advice(self) -> str:
        """As that of the vectors."""
        return self.vectors.overflow_advice

    def allocate(self, texts: int) -> Room:
        """A place for the score of each pair."""
        return Room(np.full(sum(map(len, self.pairs)), np.nan, dtype=np.float32), {})

    def rows(self, computed: RaggedRows) -> RaggedRows:
        """The vectors that are compared."""
        return self.vectors.rows(computed)

    def store(self, room: Room, texts: npt.NDArray[np.int64], rows: RaggedRows) -> None:
        """Score these documents, or keep copies of their vectors until there are queries."""
        queries = self.queries()
        for text, vectors in zip(texts.tolist(), rows, strict=True):
            if queries is None:
                room.waiting[text] = vectors.copy()
            else:
                self._score(room, text, vectors, queries)

    def finish(self, room: Room, queries: Queries) -> FloatArray:
        """The scores of all pairs, float32 `[pairs]`; NaN where the query or document failed."""
        while room.waiting:
            self._score(room, *room.waiting.popitem(), queries)
        return room.scores

    def _score(self, room: Room, text: int, vectors: FloatArray, queries: Queries) -> None:
        for pair, query in self.pairs[text]:
            found = queries[query]
            if found is not None:
                (room.scores[pair],) = score_documents(found, [vectors], mean=self.mean)

    def result(self, rows: Room, **of_call: Any) -> DocumentScores:
        """What the documents of a call came to."""
        return DocumentScores(rows=rows, output=self, **of_call)


@dataclass(frozen=True, kw_only=True, eq=False)
class DocumentScores(CallResult):
    """The documents' side of a call; `output.finish` gives the scores of its pairs."""

    rows: Room = field(repr=False)
    output: LateScoreOutput = field(repr=False)
