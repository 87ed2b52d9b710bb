"""`POST /v1/embed` and `/v2/embed`, as Cohere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import Request, Response

from ...embeddings import quantize
from ..calls.encoding import SlicedResponse, base64_of, item_slices, matrix_parts, string_parts
from ..calls.engine_call import Answer, model_for
from ..errors import ApiError
from ..models import EMBEDS, ServedModel
from ..request_context import RequestContext
from ..schemas.cohere import CohereEmbedRequest, EmbeddingKind
from ..schemas.embeddings import EmbeddingRequest
from .embeddings import embeddings_for

__all__ = ["embed_v1", "embed_v2", "scaled_int8"]

Matrix = npt.NDArray[Any]
_TASKS = {"search_query": "query", "search_document": "document"}


async def embed_v2(body: CohereEmbedRequest, request: Request) -> Response:
    """Embed texts, as the second version of Cohere's API does."""
    return await _embed(body, request, body.embedding_types or ["float"], version="2")


async def embed_v1(body: CohereEmbedRequest, request: Request) -> Response:
    """Embed texts, as the first version of Cohere's API does."""
    return await _embed(body, request, body.embedding_types, version="1")


async def _embed(
    body: CohereEmbedRequest,
    request: Request,
    kinds: Sequence[EmbeddingKind] | None,
    *,
    version: str,
) -> Response:
    """By type, or without types as a plain list."""
    texts = _texts(body)
    model = model_for(request, body.model, EMBEDS)
    _require_whole(body, model)
    has_prompt = body.input_type in model.engine.info().model.prompts
    call = EmbeddingRequest.model_construct(
        input=texts,
        model=body.model,
        input_type=_TASKS.get(body.input_type or ""),
        prompt_name=body.input_type if has_prompt else None,
        dimensions=body.output_dimension,
        truncate=body.truncate,
        priority=body.priority,
    )
    _, answer = await embeddings_for(request, call, field="texts")
    fields = {
        "response_type": f"embeddings_{'floats' if kinds is None else 'by_type'}",
        "id": RequestContext.of(request.scope).request_id,
    }
    slices = _answer_slices(fields, answer, kinds, texts, version)
    return await SlicedResponse.of(slices, answer.headers)


def _texts(body: CohereEmbedRequest) -> list[str]:
    """Raises `ApiError` 400 unless either field holds some."""
    if bool(body.texts) == bool(body.inputs):
        why = "both hold texts; send one" if body.texts else "neither holds a text"
        raise ApiError(400, f"texts and inputs: {why}", param="texts", code="invalid_value")
    return body.texts or [one["content"][0]["text"] for one in body.inputs]


def _require_whole(body: CohereEmbedRequest, model: ServedModel) -> None:
    """Raises `ApiError` 400 where fewer tokens are asked for than the model reads."""
    longest = model.engine.info().max_length
    if body.max_tokens is not None and (longest is None or body.max_tokens < longest):
        raise ApiError.about(
            "max_tokens",
            f"it cannot be fewer than the model reads, {longest or 'without a limit'}; the "
            "server's flag --max-length sets fewer",
        )


def _answer_slices(
    fields: Mapping[str, str],
    answer: Answer[Any],
    kinds: Sequence[EmbeddingKind] | None,
    texts: Sequence[str],
    version: str,
) -> Iterator[bytes]:
    vectors: Matrix = answer.result.vectors
    yield orjson.dumps(fields)[:-1] + b',"embeddings":'
    if kinds is None:
        yield from item_slices(b"", [matrix_parts(vectors)], b"")
    else:
        for place, kind in enumerate(dict.fromkeys(kinds)):
            opening = b'%s"%s":' % (b"," if place else b"{", kind.encode())
            yield from item_slices(opening, [_ARRAYS[kind](vectors)], b"")
        yield b"}"
    meta = {
        "api_version": {"version": version},
        "billed_units": {"input_tokens": answer.tokens},
    }
    closing = b'],"meta":' + orjson.dumps(meta) + b"}"
    yield from item_slices(b',"texts":[', map(string_parts, texts), closing)


def _base64_array(vectors: Matrix) -> Iterator[bytes]:
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    return item_slices(b"[", ((orjson.dumps(base64_of(row)),) for row in rows), b"]")


def scaled_int8(vectors: Matrix) -> npt.NDArray[np.int8]:
    """Each row scaled so that its largest element is 127 or -127, which keeps its direction.

    `quantize` takes ranges from all vectors of a call. Here a text's vector must not depend on
    what was sent with it, and a query must be comparable with documents of other requests.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scales = np.divide(127, largest, out=np.zeros_like(largest), where=largest > 0)
    rows: npt.NDArray[np.int8] = np.rint(vectors * scales).astype(np.int8)
    return rows


def _scaled_uint8(vectors: Matrix) -> Matrix:
    return (scaled_int8(vectors).astype(np.int16) + 128).astype(np.uint8)


# JSON of vectors, in parts.
_ARRAYS: Mapping[EmbeddingKind, Callable[[Matrix], Iterator[bytes]]] = {
    "float": matrix_parts,
    "int8": lambda vectors: matrix_parts(scaled_int8(vectors)),
    "uint8": lambda vectors: matrix_parts(_scaled_uint8(vectors)),
    "binary": lambda vectors: matrix_parts(quantize(vectors, "binary")),
    "ubinary": lambda vectors: matrix_parts(quantize(vectors, "ubinary")),
    "base64": _base64_array,
}
