"""`InputProcessor`: what a caller hands in becomes a `Request`, and its texts `TokenChunk`s.

It owns the tokenizers, what is known of prompts, and which texts cannot be accepted. It knows no
queue and no device.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..checkpoint.spec import ModelSpec
from ..errors import EngineError, InvalidInput, InvalidText, MillpondError, UnsupportedCall
from ..model.info import RouteInfo
from ..pair import Pair
from ..scheduler.request import Request
from ..scheduler.token_chunk import TokenChunk
from .params.embed import NO_TEXTS, EmbedParams, Texts, TextsInput, take_strings, take_texts
from .params.score import ScoreParams
from .settings import (
    CallSettings,
    find_settings,
    most_queue_tokens,
    options_of,
    remembered,
    route_of,
)
from .tokenizer import CallTokenizer, PairReader, TokenIds, Tokenizer, TokenNames

__all__ = ["InputProcessor", "Tokenized"]

Rows = npt.NDArray[np.int64]

logger = logging.getLogger("millpond")


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What became of texts of a request."""

    chunk: TokenChunk | None
    """Those that were accepted; None if there are none."""
    refused: Mapping[int, InvalidInput]
    """The errors of the others, by their index in the request."""


def _reading(request: Request) -> Hashable:
    """What a tokenizer's result depends on, beside the texts."""
    return (
        request.route,
        request.prompt,
        request.task,
        request.truncate,
        request.max_length,
        request.tokenized,
        isinstance(request.texts[0], Pair),
    )


def _chunks_of_one(
    claims: Sequence[tuple[Request, Rows]], tokens: TokenIds, seconds: float
) -> Sequence[TokenChunk]:
    """A chunk for each of several requests of which one text is claimed."""
    chunks = TokenChunk.of_single_texts(
        [rows for _, rows in claims], tokens.ids, tokens.lengths, seconds
    )
    counts, truncated = tokens.lengths.tolist(), tokens.truncated.tolist()
    for (request, rows), count, is_cut in zip(claims, counts, truncated, strict=True):
        row = rows[0]
        request.token_counts[row] = count
        request.truncated[row] = is_cut
    return chunks


class InputProcessor:
    """Makes requests for the routes of a model, and tokenises their texts, from any thread."""

    def __init__(
        self,
        spec: ModelSpec,
        routes: Sequence[RouteInfo],
        tokenizers: Sequence[Tokenizer],
        *,
        max_length: int | None = None,
        caches_prefixes: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`max_length` is the user's limit; a checkpoint may set lower ones for a task."""
        self.spec = spec
        self._routes = tuple(routes)
        self._tokenizers = tuple(tokenizers)
        self._max_length = max_length
        self._caches_prefixes = caches_prefixes
        self._find_settings = partial(
            find_settings,
            *(spec, self._routes, self._tokenizers),
            caches_prefixes=caches_prefixes,
        )
        self._known_settings = remembered(self._find_settings)
        self._clock = clock
        self._call: CallTokenizer | None = None  # in place of its own tokenizers

    def calling(self, call: CallTokenizer) -> InputProcessor:
        """The same, whose texts and pairs are tokenised by `call`."""
        other = copy.copy(self)
        other._call = call
        return other

    def request(
        self,
        texts: TextsInput,
        params: EmbedParams,
        *,
        now_s: float,
        strict: bool = True,
        several: bool = False,
        call: str = "embed",
    ) -> tuple[Request, bool]:
        """The request of a `call`, and whether the caller gave a single text.

        Texts that cannot be accepted have their errors in the request or, if it is to be `strict`,
        the first raises its own. With `several` a list of integers is no text but several bad ones.

        Raises `InvalidOption` or a subclass, and `InvalidText` for what holds no texts.
        """
        params.require(self.spec, call)
        taken = take_texts(texts, several=several)
        settings = self.settings_of(params, are_ids=taken.are_ids)
        if strict and taken.refused:
            raise next(iter(taken.refused.values()))
        request = Request(
            taken.items,
            priority=params.priority_of(len(taken.items)),
            output=settings.output,
            route=settings.route,
            prompt=settings.prompt,
            task=params.task,
            prompt_tokens=settings.prompt_tokens,
            shared_tokens=settings.shared_tokens,
            is_pinned=settings.is_pinned,
            truncate=params.truncate,
            max_length=settings.max_length,
            most_tokens=settings.most_tokens,
            reads_tokens=settings.reads_tokens,
            tokenized=taken.are_ids,
            progress=params.progress,
            reports_truncation=params.reports_truncation,
            arrived_s=now_s,
            deadline_s=None if params.timeout is None else now_s + float(params.timeout),
            refused=taken.refused,
            strict=strict,
        )
        return request, taken.is_single

    def settings_of(self, params: EmbedParams, *, are_ids: bool) -> CallSettings:
        """What the options of a call say of its request. Raises as `request` does."""
        if type(params) is not EmbedParams:  # it may have options of its own
            return self._find_settings(params, are_ids=are_ids)
        if params.timeout is not None:
            params.validate(self.spec)
        try:
            return self._known_settings(are_ids, *options_of(params))
        except TypeError:  # an option without a hash, such as a list: it is refused
            return self._find_settings(params, are_ids=are_ids)

    def score_request(
        self, taken: Texts, params: ScoreParams, *, now_s: float, strict: bool = True
    ) -> Request:
        """The request for scores of texts or pairs that were taken. Raises as `request` does."""
        spec, info, tokenizer = self.spec, self._routes[0], self._tokenizers[0]
        assert spec.scoring is not None
        if spec.scoring.per_token and (taken.are_pairs or taken.are_ids):
            raise UnsupportedCall(
                f"{spec.name} gives a class for each token of a text; call classify with strings"
            )
        params.validate(spec, pairs=taken.are_pairs)
        if strict and taken.refused:
            raise next(iter(taken.refused.values()))
        prompt = params.prompt_text(spec, tokenized=taken.are_ids)
        longest = info.max_length
        return Request(
            taken.items,
            priority=params.priority_of(taken),
            output=params.output(spec),
            prompt=prompt,
            prompt_tokens=tokenizer.prompt_length(prompt) if info.excludes_prompt else 0,
            shared_tokens=self._shared_by_pairs(taken, prompt),
            truncate=params.truncate,
            max_length=spec.max_length_for(None),
            most_tokens=most_queue_tokens(longest),
            reads_tokens=longest,
            tokenized=taken.are_ids,
            arrived_s=now_s,
            deadline_s=None if params.timeout is None else now_s + float(params.timeout),
            refused=taken.refused,
            strict=strict,
        )

    def spans(self, request: Request) -> Sequence[Sequence[tuple[int, int] | None]]:
        """The characters of each token of a request's texts. Raises `UnsupportedCall`."""
        return cast("PairReader", self._tokenizers[0]).spans(
            cast("Sequence[str]", request.texts),
            prompt=request.prompt,
            truncate=request.truncate,
            max_length=self._limit(request),
        )

    def _shared_by_pairs(self, taken: Texts, prompt: str) -> int:
        """Leading tokens that all pairs of a call share, if they share their query."""
        tokenizer = cast("PairReader", self._tokenizers[0])
        if not self._caches_prefixes or not taken.are_pairs:
            return 0
        queries = {pair.query for pair in taken.items}
        if len(queries) > 1 or len(taken.items) == 1:
            return 0
        return tokenizer.shared_pair_prefix_length(queries.pop(), prompt)

    def token_ids(
        self, texts: Sequence[str], params: EmbedParams, *, special_tokens: bool
    ) -> list[list[int]]:
        """What the tokenizer makes of the texts with their prompt in front, nothing cut."""
        params.validate(self.spec)
        if isinstance(texts, str):
            raise InvalidText("expected a list of strings; put the one text into a list")
        if not isinstance(texts, Iterable) or isinstance(texts, NO_TEXTS):
            raise InvalidText(f"expected a list of strings, not {type(texts).__name__}")
        prompt = params.prompt_text(self.spec, tokenized=False)
        place = route_of(self.spec, self._routes, params)
        return self._tokenizers[place].token_ids(
            take_strings(texts), prompt=prompt, task=params.task, special_tokens=special_tokens
        )

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids. Raises `InvalidTokenIds`."""
        return self._tokenizers[0].detokenize(ids)

    def names(self, ids: Sequence[int]) -> Sequence[str]:
        """The tokens of these ids."""
        return cast("TokenNames", self._tokenizers[0]).names(ids)

    def tokenize(self, request: Request, rows: Rows) -> Tokenized:
        """Tokenise texts of a request, and note what was cut off.

        Raises `EngineError`, and for a strict request `InvalidInput`.
        """
        try:
            return self._tokenized(request, rows)
        except MillpondError:
            raise
        except Exception as error:  # unforeseen: this call fails, the engine goes on
            raise EngineError(
                f"the tokenizer failed with {type(error).__name__}: {error}"
            ) from error

    def tokenize_all(
        self, claims: Sequence[tuple[Request, Rows]]
    ) -> Sequence[Tokenized | MillpondError]:
        """What `tokenize` gives for each, or raises.

        Texts that are tokenised alike go to the tokenizer together.
        """
        alike: dict[Hashable, list[int]] = {}
        for place, (request, _) in enumerate(claims):
            alike.setdefault(_reading(request), []).append(place)
        found: dict[int, Tokenized | MillpondError] = {}
        for places in alike.values():
            found |= zip(places, self._tokenize_alike([claims[p] for p in places]), strict=True)
        return [found[place] for place in range(len(claims))]

    def _tokenize_alike(
        self, claims: Sequence[tuple[Request, Rows]]
    ) -> Sequence[Tokenized | MillpondError]:
        if len(claims) > 1:
            try:
                return [Tokenized(chunk, {}) for chunk in self._chunks(claims)]
            except Exception:  # of which request it is, they say one by one
                logger.debug("requests are tokenised one by one", exc_info=True)
        return [self._tokenized_or_error(request, rows) for request, rows in claims]

    def _tokenized_or_error(self, request: Request, rows: Rows) -> Tokenized | MillpondError:
        try:
            return self.tokenize(request, rows)
        except MillpondError as error:
            return error

    def _tokenized(self, request: Request, rows: Rows) -> Tokenized:
        try:
            return Tokenized(self._chunk(request, rows), {})
        except InvalidInput as error:
            if request.strict:
                raise
            refused = self._refused(request, rows, error)
        good = rows[~np.isin(rows, list(refused))]
        return Tokenized(self._chunk(request, good) if len(good) else None, refused)

    def _refused(
        self, request: Request, rows: Rows, error: InvalidInput
    ) -> dict[int, InvalidInput]:
        """The errors of all bad texts, found by bisection, where one is known."""
        refused = {error.index: error}
        others = rows[rows != error.index]
        for part in np.array_split(others, 2):
            if len(part):
                try:
                    self._chunk(request, part)
                except InvalidInput as another:
                    refused |= self._refused(request, part, another)
        return refused

    def _chunk(self, request: Request, rows: Rows) -> TokenChunk:
        try:
            (chunk,) = self._chunks([(request, rows)])
        except InvalidInput as error:
            raise error.at(int(rows[error.index])) from None
        return chunk

    def _chunks(self, claims: Sequence[tuple[Request, Rows]]) -> Sequence[TokenChunk]:
        """A chunk for each, from one call of the tokenizer."""
        started_s = self._clock()
        texts = [request.texts[row] for request, rows in claims for row in rows.tolist()]
        tokens = self._encoded(claims[0][0], texts)
        if len(tokens.lengths) != len(texts):  # a request would wait for the rest for ever
            raise TypeError(f"it gave the tokens of {len(tokens.lengths)} texts for {len(texts)}")
        seconds = (self._clock() - started_s) / len(texts)
        if len(texts) == len(claims):
            return _chunks_of_one(claims, tokens, seconds)
        chunks, text, token = [], 0, 0
        for request, rows in claims:
            count = len(rows)
            lengths = tokens.lengths[text : text + count]
            request.token_counts[rows] = lengths
            request.truncated[rows] = tokens.truncated[text : text + count]
            stop = token + int(lengths.sum())
            ids = tokens.ids[token:stop]
            chunks.append(TokenChunk.build(rows, ids, lengths, seconds * count))
            text, token = text + count, stop
        return chunks

    def _encoded(self, request: Request, texts: Sequence[Any]) -> TokenIds:
        route, limit = request.route, self._limit(request)
        if request.tokenized:
            return self._tokenizers[route].fit_ids(texts, request.truncate, max_length=limit)
        options = {"prompt": request.prompt, "truncate": request.truncate, "max_length": limit}
        method = "encode_pairs"
        if not isinstance(texts[0], Pair):
            method, options["task"] = "encode", request.task
        if self._call is not None:
            return self._call(route, method, texts, options)
        tokens: TokenIds = getattr(self._tokenizers[route], method)(texts, **options)
        return tokens

    def _limit(self, request: Request) -> int | None:
        """The lowest limit of a call's texts beside the tokenizer's own."""
        limit = request.max_length
        return limit if limit is None or self._max_length is None else min(limit, self._max_length)

    def __repr__(self) -> str:
        return f"InputProcessor(routes={len(self._routes)}, max_length={self._max_length})"
