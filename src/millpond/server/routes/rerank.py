"""`POST /rerank` and `/score`: pairs of a query and a document."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy.typing as npt
import orjson
from fastapi import Request, Response

from ...engine.engine import Engine
from ...engine.params.score import INTERACTIVE_PAIRS
from ...pair import Pair
from ...scores import Scores
from ..calls.encoding import SlicedResponse, item_slices, string_parts
from ..calls.engine_call import LONGEST_QUERY, MANY_TEXTS, Answer, ask, model_for
from ..errors import ApiError
from ..models import SCORES, ServedModel
from ..request_context import RequestContext
from ..schemas.scores import RerankRequest, RerankTextsRequest, ScoreRequest, ScoringBody

__all__ = ["opening", "priority_of", "rerank", "score", "usage_of"]

COHERE_VERSION = "2"
CHARACTERS_PER_TOKEN = 16  # more than nearly all texts have, to tokenise a part of a long one

Row = tuple[int, Any]
"""Place of a pair, and its score."""


async def rerank(body: RerankRequest | RerankTextsRequest, request: Request) -> Response:
    """Order documents by their relevance to a query.

    With `documents` as Cohere, Jina, vLLM and infinity do, with `texts` as Text Embeddings
    Inference does.
    """
    if isinstance(body, RerankTextsRequest):
        return await _rerank_texts(body, request)
    model = model_for(request, body.model, SCORES)
    engine, most = model.engine, body.max_tokens_per_doc

    def pairs() -> list[Pair]:
        documents = body.documents
        if most is not None and _may_exceed(engine, most, body):
            documents = [_first_tokens(engine, one, most) for one in documents]
        return [Pair(body.query, document) for document in documents]

    lengths = [len(document) for document in body.documents]
    has_much = most is not None and max(lengths) > most
    answer = await _score_pairs(request, model, body, pairs, lengths, has_much=has_much)
    rows = _ranked(answer.result, body.top_n)
    texts = body.documents if body.return_documents else None
    items = (_result(row, texts) for row in rows)
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
        (_json({"index": index, "object": "score", "score": found}),)
        for index, found in enumerate(answer.result.scores)
    )
    created = f',"created":{int(time.time())},"data":['.encode()
    before = opening(request, "list", body.model or model.name) + created
    after = b'],"usage":' + orjson.dumps(usage_of(answer.tokens)) + b"}"
    return await SlicedResponse.of(item_slices(before, items, after), answer.headers)


async def _rerank_texts(body: RerankTextsRequest, request: Request) -> Response:
    model = model_for(request, body.model, SCORES)
    lengths = [len(text) for text in body.texts]

    def pairs() -> list[Pair]:
        return [Pair(body.query, text) for text in body.texts]

    answer = await _score_pairs(request, model, body, pairs, lengths)
    texts = body.texts if body.return_text else None
    items = (_text_result(row, texts) for row in _ranked(answer.result, body.top_n))
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
    priority = priority_of(body, lengths, few=INTERACTIVE_PAIRS)

    def submit() -> Future[Scores]:
        return model.engine.submit_score(
            pairs(),
            wait=False,
            activation=_activation(model, body.raw_scores),
            truncate=body.truncate_option,
            prompt=body.prompt,
            prompt_name=body.prompt_name,
            priority=priority,
        )

    return await ask(
        request,
        model,
        submit,
        priority=priority,
        field=body.LARGE_FIELDS[0],
        has_much=has_much or len(lengths) > MANY_TEXTS,
    )


_ACTIVATIONS = {None: "auto", False: "sigmoid", True: "none"}


def _activation(model: ServedModel, raw_scores: bool | None) -> str:
    """MaxSim is no logit: a sigmoid would be 1 for all that is alike at all."""
    has_logits = model.engine.info().model.scoring is not None
    return _ACTIVATIONS[raw_scores] if has_logits else "auto"


def priority_of(body: ScoringBody, lengths: Sequence[int], *, few: int) -> str:
    """Of a request for texts or pairs of these lengths, in characters."""
    if body.priority is not None:
        return body.priority
    is_small = len(lengths) <= few and max(lengths) <= LONGEST_QUERY
    return "interactive" if is_small else "bulk"


def opening(request: Request, kind: str, model: str) -> bytes:
    """The first fields of a response, without the brace that ends them."""
    fields = {"id": RequestContext.of(request.scope).request_id, "object": kind, "model": model}
    return orjson.dumps(fields)[:-1]


def usage_of(tokens: int) -> dict[str, int]:
    """As OpenAI has it."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _pairs(body: ScoreRequest) -> list[Pair]:
    """Raises `ApiError` 400 for two lists of different lengths."""
    queries, documents = (
        [side] if isinstance(side, str) else side for side in (body.queries, body.documents)
    )
    if len(queries) not in (1, len(documents)):
        raise ApiError(
            400,
            f"queries: there are {len(queries)} of them and {len(documents)} documents; send one "
            "query, or as many as documents",
            param="queries",
            code="invalid_value",
        )
    queries = queries * len(documents) if len(queries) == 1 else queries
    return [Pair(*sides) for sides in zip(queries, documents, strict=True)]


def _ranked(result: Scores, top_n: int | None) -> list[Row]:
    scores: npt.NDArray[Any] = result.scores
    return [(one.index, scores[one.index]) for one in result.ranked(top_n)]


def _json(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _result(row: Row, texts: Sequence[str] | None) -> Iterator[bytes]:
    written = _json({"index": row[0], "relevance_score": row[1]})
    if texts is None:
        yield written
        return
    yield written[:-1] + b',"document":{"text":'
    yield from string_parts(texts[row[0]])
    yield b"}}"


def _text_result(row: Row, texts: Sequence[str] | None) -> Iterator[bytes]:
    written = _json({"index": row[0], "score": row[1]})
    if texts is None:
        yield written
        return
    yield written[:-1] + b',"text":'
    yield from string_parts(texts[row[0]])
    yield b"}"


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
