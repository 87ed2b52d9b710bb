"""`Scores`, the result of a call that scores or classifies, and how logits become its scores.

Pure numpy; it knows nothing of models, devices or queues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .outputs import CallResult, RaggedOutput, RaggedRows

__all__ = [
    "ACTIVATIONS",
    "Label",
    "Ranked",
    "ScoreOutput",
    "Scores",
    "TokenLabel",
    "TokenScoreOutput",
    "TokenScores",
]

FloatArray = npt.NDArray[np.float32]


Logits = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document by its place in the call, and its score."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Label:
    """A class by its name in the checkpoint, and its score."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class TokenLabel:
    """The best class of a token, and which characters of the text are the token's."""

    name: str
    score: float
    start: int
    end: int


def _sigmoid(logits: Logits) -> Logits:
    small = np.exp(-np.abs(logits))
    found: Logits = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return found


def _log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: Logits = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _softplus(logits: Logits) -> Logits:
    found: Logits = np.logaddexp(0.0, logits)
    return found


ACTIVATIONS: Mapping[str, Callable[[Logits], Logits]] = {
    "none": lambda logits: logits,
    "sigmoid": _sigmoid,
    "softmax": lambda logits: np.exp(_log_softmax(logits)),
    "log_softmax": _log_softmax,
    "log_sigmoid": lambda logits: -_softplus(-logits),
    "relu": lambda logits: np.maximum(logits, 0.0),
    "softplus": _softplus,
    "tanh": np.tanh,
}
"""What can be applied to the logits `[n, labels]` of a call, by name."""


@dataclass(frozen=True, kw_only=True)
class ScoreOutput:
    """What a caller wants of logits: an activation."""

    labels: tuple[str, ...]
    activation: str

    @property
    def overflow_advice(self) -> str:
        """An activation that may be infinite where its logit is not is none of ours."""
        return f"its score is not finite after {self.activation}; ask for activation='none'"

    def allocate(self, texts: int) -> FloatArray:
        """An array for the scores of `texts` texts, NaN for those that will fail."""
        return np.full((texts, len(self.labels)), np.nan, dtype=np.float32)

    def rows(self, computed: FloatArray) -> FloatArray:
        """Scores float32 `[n, labels]` of logits, computed in float64."""
        return ACTIVATIONS[self.activation](computed.astype(np.float64)).astype(np.float32)

    def store(self, room: FloatArray, texts: npt.NDArray[np.int64], rows: FloatArray) -> None:
        """Put scores of these texts into `allocate`'s array."""
        room[texts] = rows

    def result(self, rows: npt.NDArray[Any], **of_call: Any) -> Scores:
        """The scores of a call."""
        return Scores(rows=rows, labels=self.labels, **of_call)


@dataclass(frozen=True, kw_only=True)
class TokenScoreOutput(RaggedOutput):
    """What a caller wants of the logits of tokens: an activation."""

    labels: tuple[str, ...]
    activation: str

    @property
    def overflow_advice(self) -> str:
        """As that of `ScoreOutput`."""
        return f"its scores are not finite after {self.activation}; ask for activation='none'"

    def rows(self, computed: RaggedRows) -> RaggedRows:
        """Scores of logits, computed in float64."""
        scores = ACTIVATIONS[self.activation](computed.values.astype(np.float64))
        return RaggedRows(scores.astype(np.float32), computed.offsets)

    def result(self, rows: list[FloatArray | None], **of_call: Any) -> TokenScores:
        """The scores of a call."""
        return TokenScores(rows=rows, labels=self.labels, **of_call)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scores(CallResult):
    """The scores of a call. Those of texts or pairs with an error are NaN."""

    labels: tuple[str, ...]
    """The checkpoint's names for them."""
    rows: FloatArray = field(repr=False)
    """float32 `[n, labels]`."""

    @property
    def scores(self) -> FloatArray:
        """float32 `[n]` of a model with one label, `[n, labels]` of any other."""
        return self.rows[:, 0] if len(self.labels) == 1 else self.rows

    def ranked(self, top_n: int | None = None) -> list[Ranked]:
        """The places of all pairs that have a score, best first and ties by place.

        Those of the first label, of which a reranker has no other.
        """
        scores = self.rows[:, 0]
        order = np.argsort(-scores, kind="stable")  # NaN is last
        order = order[: len(scores) - int(np.isnan(scores).sum())][:top_n]
        return [Ranked(int(index), float(scores[index])) for index in order]

    def classes(self, top_k: int | None = None) -> list[list[Label]]:
        """Of each text its labels, best first and ties in the checkpoint's order.

        None of a text with an error.
        """
        return [[] if np.isnan(row[0]) else self._classes(row, top_k) for row in self.rows]

    def _classes(self, row: FloatArray, top_k: int | None) -> list[Label]:
        order = np.argsort(-row, kind="stable")[:top_k].tolist()
        return [Label(self.labels[index], float(row[index])) for index in order]

    def _facts(self) -> Mapping[str, object]:
        return {"labels": len(self.labels)}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenScores(CallResult):
    """The scores of the tokens of a call's texts."""

    labels: tuple[str, ...]
    """The checkpoint's names for them."""
    rows: Sequence[FloatArray | None] = field(repr=False)
    """Of each text float32 `[tokens, labels]`, special tokens included; None with an error."""

    def best(self, text: int, spans: Sequence[tuple[int, int] | None]) -> list[TokenLabel]:
        """The best class of each token that has a span of characters, in the text's order.

        None of a text with an error. Tokens that were cut off have none either.
        """
        rows = self.rows[text]
        found = []
        for row, span in zip(() if rows is None else rows, spans, strict=False):
            if span is not None:
                best = int(row.argmax())
                found.append(TokenLabel(self.labels[best], float(row[best]), *span))
        return found

    def _facts(self) -> Mapping[str, object]:
        return {"labels": len(self.labels)}
