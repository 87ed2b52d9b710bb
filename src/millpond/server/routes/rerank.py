"""`POST /rerank` and `/score`: pairs of a query and a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy.typing as npt
import orjson
from fastapi import Request, Response

from ...engine.engine import Engine
from ...pair import Pair
from ...scores import Scores
from ..calls.encoding import SlicedResponse, item_slices, json_bytes, string_parts
from ..calls.engine_call import Answer, model_for
from ..calls.pairs import ask_for_scores, list_slices, opening, usage_of
from ..errors import ApiError
from ..models import SCORES, ServedModel
from ..schemas.scores import RerankRequest, RerankTextsRequest, ScoreRequest

__all__ = ["rerank", "score"]

COHERE_VERSION = "2"
CHARACTERS_PER_TOKEN = 16  # more than nearly all texts have, to tokenise a part of a long one

Row = tuple[int, Any]
"""Place of a pair, and its score."""


async def rerank(body: RerankRequest | RerankTextsRequest, request: Request) -> Response:
    """Order documents by their relevance to a query.

    With `documents` as Cohere, Jina, vLLM and infinity do, with `texts` as Text Embeddings
    Inference does.
    """
    model = model_for(request, body.model, SCORES)
    if isinstance(body, RerankTextsRequest):
        return await _rerank_texts(body, request, model)
    engine, most = model.engine, body.max_tokens_per_doc

    def pairs() -> list[Pair]:
        documents = body.documents
        if most is not None and _may_exceed(engine, most, body):
            documents = [_first_tokens(engine, one, most) for one in documents]
        return [Pair(body.query, document) for document in documents]

    lengths = [len(document) for document in body.documents]
    has_much = most is not None and max(lengths) > most
    answer = await _score_pairs(request, model, body, pairs, lengths, has_much=has_much)
    texts = body.documents if body.return_documents else None
    items = (
        _with_text("relevance_score", row, texts, b',"document":{"text":', b"}}")
        for row in _ranked(answer.result, body.top_n)
    )
    before = opening(request, "rerank", body.model or model.name) + b',"results":['
    meta = {
        "api_version": {"version": COHERE_VERSION},
        "tokens": {"input_tokens": answer.tokens},
    }
    after = b"]," + orjson.dumps({"usage": usage_of(answer.tokens), "meta": meta})[1:]
    return await SlicedResponse.of(item_slices(before, items, after), answer.headers)


async def score(body: ScoreRequest, request: Request) -> Response:
    """Score pairs, as vLLM does."""
    model = model_for(request, body.model, SCORES)
    pairs = _pairs(body)
    lengths = [len(pair) for pair in pairs]
    answer = await _score_pairs(request, model, body, lambda: pairs, lengths)
    items = (
        (json_bytes({"index": index, "object": "score", "score": found}),)
        for index, found in enumerate(answer.result.scores)
    )
    slices = list_slices(request, "list", body.model or model.name, items, answer.tokens)
    return await SlicedResponse.of(slices, answer.headers)


async def _rerank_texts(body: RerankTextsRequest, request: Request, model: ServedModel) -> Response:
    pairs = [Pair(body.query, text) for text in body.texts]
    answer = await _score_pairs(request, model, body, lambda: pairs, list(map(len, body.texts)))
    texts = body.texts if body.return_text else None
    items = (
        _with_text("score", row, texts, b',"text":', b"}")
        for row in _ranked(answer.result, body.top_n)
    )
    return await SlicedResponse.of(item_slices(b"[", items, b"]"), answer.headers)


async def _score_pairs(
    request: Request,
    model: ServedModel,
    body: RerankRequest | RerankTextsRequest | ScoreRequest,
    pairs: Callable[[], list[Pair]],
    lengths: Sequence[int],
    *,
    has_much: bool = False,
) -> Answer[Scores]:
    """The scores of pairs, whose documents have these lengths."""
    return await ask_for_scores(
        request,
        model,
        model.engine.submit_score,
        pairs,
        lengths,
        body,
        activation=_activation(model, body.raw_scores),
        has_much=has_much,
    )


_ACTIVATIONS = {None: "auto", False: "sigmoid", True: "none"}


def _activation(model: ServedModel, raw_scores: bool | None) -> str:
    """MaxSim is no logit: a sigmoid would be 1 for all that is alike at all."""
    has_logits = model.engine.info().model.scoring is not None
    return _ACTIVATIONS[raw_scores] if has_logits else "auto"


def _pairs(body: ScoreRequest) -> list[Pair]:
    """Raises `ApiError` 400 for two lists of different lengths."""
    queries, documents = (
        [side] if isinstance(side, str) else side for side in (body.queries, body.documents)
    )
    if len(queries) not in (1, len(documents)):
        raise ApiError.about(
            "queries",
            f"there are {len(queries)} of them and {len(documents)} documents; send one query, or "
            "as many as documents",
        )
    queries = queries * len(documents) if len(queries) == 1 else queries
    return [Pair(*sides) for sides in zip(queries, documents, strict=True)]


def _ranked(result: Scores, top_n: int | None) -> list[Row]:
    scores: npt.NDArray[Any] = result.scores
    return [(one.index, scores[one.index]) for one in result.ranked(top_n)]


def _with_text(
    name: str, row: Row, texts: Sequence[str] | None, before: bytes, after: bytes
) -> Iterator[bytes]:
    """A JSON object of a document: its place, its score by this name, and its text."""
    written = json_bytes({"index": row[0], name: row[1]})
    if texts is None:
        yield written
        return
    yield written[:-1] + before
    yield from string_parts(texts[row[0]])
    yield after


def _may_exceed(engine: Engine, most: int, body: RerankRequest) -> bool:
    """Whether more tokens of a document could be read than `most`."""
    longest = engine.info().max_length
    return longest is None or most < longest or body.truncate in ("start", "error")


def _first_tokens(engine: Engine, document: str, most: int) -> str:
    """A document, or the text of its first tokens where it has more than `most`."""
    if len(document) <= most // 4:  # a character has up to four bytes, each of them a token
        return document
    size = most * CHARACTERS_PER_TOKEN
    while True:
        (ids,) = engine.tokenize([document[:size]], prompt="", special_tokens=False)
        if len(ids) > most:
            (text,) = engine.detokenize([ids[:most]])
            return text
        if size >= len(document):
            return document
        size *= 2
