"""`ScoreParams`: the options of a call that scores or classifies, and what it may be handed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ...checkpoint.spec import ModelSpec
from ...errors import InvalidOption, InvalidText, UnsupportedCall
from ...pair import Pair
from ...scheduler.request import Priority, TruncateSide
from ...scores import ACTIVATIONS, ScoreOutput, TokenScoreOutput
from .embed import EmbedParams, Texts, TextsInput, each_taken, take_texts, unsupported

__all__ = [
    "PairInput",
    "PairsInput",
    "ScoreParams",
    "TruncatePair",
    "require_one_score",
    "require_scores",
    "require_scores_of_texts",
    "take_pairs",
    "take_texts_or_pairs",
]

PairInput = tuple[str, str] | Sequence[str] | Pair
"""A query and a document."""


PairsInput = PairInput | Sequence[PairInput]
"""One pair or several."""


TruncatePair = TruncateSide | Literal["document"]


INTERACTIVE_PAIRS = 128  # of a call that someone waits for; one with more is ingestion


@dataclass(frozen=True, kw_only=True)
class ScoreParams:
    """The options of one call."""

    activation: str = "auto"
    truncate: TruncatePair | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    priority: Priority | str | None = None
    timeout: float | None = None
    for_classes: bool = False
    """Whether `activation="auto"` is to give probabilities."""

    def validate(self, spec: ModelSpec, *, pairs: bool) -> None:
        """Raise `InvalidOption` or a subclass for an option that cannot be meant."""
        sides = get_args(TruncateSide) + (("document",) if pairs else ())
        if self.truncate is not None and self.truncate not in sides:
            raise InvalidOption(
                f"truncate={self.truncate!r}: choose one of {', '.join(map(repr, sides))}, or "
                "leave it out to cut the longer text first"
            )
        if self.activation != "auto" and (
            not isinstance(self.activation, str) or self.activation not in ACTIVATIONS
        ):
            raise InvalidOption(
                f"activation={self.activation!r}: choose 'auto', "
                f"{', '.join(map(repr, ACTIVATIONS))}"
            )
        self._common().validate(spec)

    def prompt_text(self, spec: ModelSpec, *, tokenized: bool = False) -> str:
        """What stands in front of every query, or is the instruction of a chat template."""
        return self._common().prompt_text(spec, tokenized)

    def output(self, spec: ModelSpec) -> ScoreOutput | TokenScoreOutput:
        """What is made of the logits of the call."""
        scoring = spec.scoring
        assert scoring is not None
        usual = scoring.class_activation if self.for_classes else scoring.activation
        activation = usual if self.activation == "auto" else self.activation
        kind = TokenScoreOutput if scoring.per_token else ScoreOutput
        return kind(labels=scoring.labels, activation=activation)

    def priority_of(self, texts: Texts) -> Priority:
        """Of a call with these texts or pairs."""
        few = INTERACTIVE_PAIRS if texts.are_pairs else 1
        if self.priority is None and len(texts.items) <= few:
            return Priority.INTERACTIVE
        return self._common().priority_of(len(texts.items))

    def _common(self) -> EmbedParams:
        return EmbedParams(
            prompt=self.prompt,
            prompt_name=self.prompt_name,
            priority=self.priority,
            timeout=self.timeout,
        )


def require_scores(spec: ModelSpec, call: str) -> None:
    """Raise `UnsupportedCall` for a model that gives no scores."""
    if spec.multi_vector is not None:
        raise unsupported(spec, call, "classes of a classifier", kind="multi_vector")
    if spec.scoring is None:
        needs = "scores of a reranker or classes of a classifier"
        by_dot = " by their dot" if spec.kind == "sparse" else ""
        raise unsupported(spec, call, needs, then=f", and compare the vectors{by_dot}")


def require_scores_of_texts(spec: ModelSpec, call: str) -> None:
    """Raise `UnsupportedCall` also for a model that classifies tokens.

    Token vectors make scores of pairs too.
    """
    if spec.multi_vector is not None:
        return
    require_scores(spec, call)
    if spec.scoring is not None and spec.scoring.per_token:
        raise UnsupportedCall(
            f"{spec.name} gives a class for each token, and {call} needs scores of pairs; "
            "call classify with texts"
        )


def require_one_score(spec: ModelSpec) -> None:
    """Raise `UnsupportedCall` for a model by whose scores nothing can be ranked."""
    require_scores_of_texts(spec, "rank")
    if spec.multi_vector is None and spec.kind != "score":
        assert spec.scoring is not None
        raise UnsupportedCall(
            f"{spec.name} gives {len(spec.scoring.labels)} classes "
            f"({', '.join(spec.scoring.labels[:5])}), and rank needs one score; call classify, or "
            "score for the scores of all classes"
        )


def take_pairs(pairs: Any) -> Texts:
    """Raises `InvalidText` for what holds no pairs."""
    if isinstance(pairs, np.ndarray):
        pairs = pairs.tolist()
    if isinstance(pairs, Pair) or _is_pair(pairs):
        return Texts([_pair(pairs, 0)], is_single=True, are_pairs=True)
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Sequence):
        raise InvalidText(
            f"expected a pair of strings or a list of pairs, not {type(pairs).__name__}; "
            "a pair is (query, document)"
        )
    items, refused = each_taken(pairs, _pair, Pair("", ""))
    return Texts(items, refused=refused, are_pairs=True)


def take_texts_or_pairs(texts: Any) -> Texts:
    """Texts where the first is one, and a tuple of two strings is a pair."""
    if isinstance(texts, Pair) or (isinstance(texts, tuple) and _is_pair(texts)):
        return take_pairs(texts)
    first = texts[0] if isinstance(texts, Sequence | np.ndarray) and len(texts) else None
    if isinstance(first, Pair) or _is_pair(first):
        return take_pairs(texts)
    given: TextsInput = texts
    return take_texts(given, several=False)


def _is_pair(value: Any) -> bool:
    is_sequence = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    return is_sequence and len(value) == 2 and all(isinstance(part, str) for part in value)


def _pair(value: Any, index: int) -> Pair:
    if isinstance(value, Pair):
        return value
    if not _is_pair(value):
        raise InvalidText(
            f"expected a pair (query, document) of two strings, not {_shown(value)}", index=index
        )
    return Pair(str(value[0]), str(value[1]))


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(part).__name__ for part in value[:4])
        return f"a {type(value).__name__} of {len(value)} ({kinds})"
    return type(value).__name__
