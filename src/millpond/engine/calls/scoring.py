"""`ScoringCalls`: the calls of an engine for pairs and classes, on the engine's own queue.

They make requests and shape results; what runs them is the same for every kind of model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypedDict, Unpack, cast

from ...errors import InvalidText
from ...pair import Pair
from ...scheduler.request import Priority, Request
from ...scores import Ranked, Scores, TokenScores
from ..params.embed import Texts, TextsInput, require_count
from ..params.score import (
    PairsInput,
    ScoreParams,
    TruncatePair,
    require_one_score,
    require_scores,
    require_scores_of_texts,
    take_pairs,
    take_texts_or_pairs,
)
from ..params.token import TokenParams
from .base import Calls, checked
from .late_interaction import LateRequest, submit_late

__all__ = ["ScoreOptions", "ScoringCalls"]


class ScoreOptions(TypedDict, total=False):
    """The options of one call, as `Engine.score` explains them."""

    activation: str
    truncate: TruncatePair | None
    prompt: str | None
    prompt_name: str | None
    priority: Priority | str | None
    timeout: float | None


class ScoringCalls(Calls):
    """What an engine answers with a model that scores or classifies."""

    def score(self, pairs: PairsInput, **options: Unpack[ScoreOptions]) -> Any:
        """Score pairs of a query and a document: float32 `[n]`, or `[n, labels]` with several.

        Of one pair, a tuple or list of two strings, the score itself: `[]`, or `[labels]`.

        - `activation`: what is applied to the model's logits. "auto" is what the checkpoint says,
          else sigmoid for one label and nothing for more; "none", "sigmoid", "softmax" and the
          others of `millpond.scores.ACTIVATIONS`.
        - `truncate`: of a pair that is too long the longer text is cut first, where the tokenizer
          says or at its "end" or "start"; "document" cuts nothing else; "error" raises
          `TextTooLong`.
        - `prompt`, `prompt_name`: what stands in front of every query, or the instruction where
          the checkpoint has a chat template.
        - `priority`: "interactive" or "bulk"; None is interactive for up to 128 pairs.
        - `timeout`: seconds until `DeadlineExceeded`.

        A multi-vector model scores by `maxsim`: each query and each document is embedded once, and
        "auto" is what comes of it.

        Raises `UnsupportedCall` where the model embeds, and else what `embed` raises.
        """
        request, single = self._submit_pairs(pairs, options, inline=True)
        return _scores(checked(self._wait(request, options.get("timeout"))), single)

    async def ascore(self, pairs: PairsInput, **options: Unpack[ScoreOptions]) -> Any:
        """`score` for any event loop. A cancelled call is taken out before its next forward."""
        request, single = self._submit_pairs(pairs, options)
        return _scores(checked(await self._await(request, options.get("timeout"))), single)

    def submit_score(
        self, pairs: PairsInput, *, wait: bool = True, **options: Unpack[ScoreOptions]
    ) -> Future[Scores]:
        """Hand pairs in and go on; the future gives `Scores`, with an error per failed pair.

        It raises, blocks and is cancelled as `submit` is.
        """
        request, _ = self._submit_pairs(pairs, options, strict=False, wait=wait, block=wait)
        return cast("Future[Scores]", request.future)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        **options: Unpack[ScoreOptions],
    ) -> list[Ranked]:
        """The documents by their score for a query: the best first, ties by index.

        `top_n` gives at most that many; the options are those of `score`. What all pairs of
        the call begin with, such as an instruction and the query, is computed once by a decoder. A
        multi-vector model ranks by `maxsim`.

        Raises `UnsupportedCall` where the model has not one score, and else as `score`.
        """
        pairs = self._pairs_to_rank(query, documents, top_n)
        request, _ = self._submit_pairs(pairs, options, inline=True)
        result: Scores = checked(self._wait(request, options.get("timeout")))
        return result.ranked(top_n)

    async def arank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        **options: Unpack[ScoreOptions],
    ) -> list[Ranked]:
        """`rank` for any event loop."""
        pairs = self._pairs_to_rank(query, documents, top_n)
        request, _ = self._submit_pairs(pairs, options)
        result: Scores = checked(await self._await(request, options.get("timeout")))
        return result.ranked(top_n)

    def classify(
        self,
        texts: TextsInput | PairsInput,
        *,
        top_k: int | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Any:
        """The classes of texts or of pairs, for each a list of `Label`, the best first.

        A single text, or a tuple of two strings as a single pair, gives one such list. A list of
        strings holds texts, a list of tuples pairs. `top_k` gives at most that many classes.
        The options are those of `score`, but `activation="auto"` makes probabilities: what the
        checkpoint names, else softmax, or sigmoid where labels exclude each other not.

        A model that classifies tokens takes texts alone, and gives of each a list of `TokenLabel`:
        the best class of every token, in the text's order.

        Raises `UnsupportedCall` where the model embeds, and else as `score`.
        """
        request, single = self._submit_classes(texts, top_k, options, inline=True)
        result = checked(self._wait(request, options.get("timeout")))
        return self._classes(request, result, top_k, single)

    async def aclassify(
        self,
        texts: TextsInput | PairsInput,
        *,
        top_k: int | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Any:
        """`classify` for any event loop."""
        request, single = self._submit_classes(texts, top_k, options)
        result = checked(await self._await(request, options.get("timeout")))
        return self._classes(request, result, top_k, single)

    def submit_classify(
        self,
        texts: TextsInput | PairsInput,
        *,
        wait: bool = True,
        **options: Unpack[ScoreOptions],
    ) -> Future[Scores]:
        """As `submit_score`, of texts or pairs and with probabilities; see `Scores.classes`."""
        request, _ = self._submit_classes(texts, None, options, strict=False, wait=wait, block=wait)
        return cast("Future[Scores]", request.future)

    def _pairs_to_rank(self, query: str, documents: Iterable[str], top_n: int | None) -> list[Pair]:
        require_one_score(self._inputs.spec)
        require_count("top_n", top_n)
        if not isinstance(query, str):
            raise InvalidText(f"the query is {type(query).__name__}, not a string")
        if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
            raise InvalidText(
                f"expected a list of documents, not {type(documents).__name__}; put a single "
                "document into a list"
            )
        given = list(documents)
        for index, document in enumerate(given):
            if not isinstance(document, str):
                raise InvalidText(
                    f"the document is {type(document).__name__}, not a string", index=index
                )
        return [Pair(query, document) for document in given]

    def _submit_pairs(
        self, pairs: Any, options: ScoreOptions, *, strict: bool = True, **how: bool
    ) -> tuple[Request | LateRequest, bool]:
        require_scores_of_texts(self._inputs.spec, "score")
        taken, params = take_pairs(pairs), ScoreParams(**options)
        if self._inputs.spec.multi_vector is not None:
            return self._submit_late(taken, params, strict, how)
        return self._submit_taken(taken, params, strict, how)

    def _submit_late(
        self, taken: Texts, params: ScoreParams, strict: bool, how: dict[str, bool]
    ) -> tuple[LateRequest, bool]:
        """By token vectors: a request for the queries, and one for the documents."""

        def send(texts: Sequence[str], options: TokenParams) -> Request:
            request, _ = self._send_texts(
                texts, options, call="score", strict=strict, several=True, **how
            )
            return request

        if strict and taken.refused:
            raise next(iter(taken.refused.values()))
        return submit_late(taken, params, self._inputs.spec, send), taken.is_single

    def _submit_classes(
        self,
        texts: Any,
        top_k: int | None,
        options: ScoreOptions,
        *,
        strict: bool = True,
        **how: bool,
    ) -> tuple[Request, bool]:
        require_scores(self._inputs.spec, "classify")
        require_count("top_k", top_k)
        params = ScoreParams(**options, for_classes=True)
        return self._submit_taken(take_texts_or_pairs(texts), params, strict, how)

    def _classes(
        self, request: Request, result: Scores | TokenScores, top_k: int | None, single: bool
    ) -> Any:
        if isinstance(result, TokenScores):
            spans = self._inputs.spans(request)
            found: Any = [result.best(text, each) for text, each in enumerate(spans)]
        else:
            found = result.classes(top_k)
        return found[0] if single else found

    def _submit_taken(
        self, taken: Texts, params: ScoreParams, strict: bool, how: dict[str, bool]
    ) -> tuple[Request, bool]:
        core = self._held_core()
        request = core.inputs.score_request(taken, params, now_s=core.clock(), strict=strict)
        self._send(core, request, **how)
        return request, taken.is_single


def _scores(result: Scores, single: bool) -> Any:
    return result.scores[0] if single else result.scores
