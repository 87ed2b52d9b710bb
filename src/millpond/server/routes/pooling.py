"""`POST /embed_all` and `/pooling`: a vector for each token, and what else models give."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request, Response

from ..calls.encoding import SlicedResponse, item_slices, json_bytes, matrix_parts
from ..calls.engine_call import model_for
from ..calls.pairs import list_slices
from ..calls.texts import ask_for_texts, options_of
from ..errors import ApiError
from ..models import CLASSIFIES, EMBEDS, GIVES_TOKENS, ServedModel
from ..schemas.token_vectors import EmbedAllRequest, PoolingRequest

__all__ = ["embed_all", "pooling"]

# What a model is asked for where a request does not say, by its kind.
_TASKS = {
    "embed": "embed",
    "multi_vector": "token_embed",
    "score": "score",
    "classify": "classify",
}
_KINDS = {
    "embed": EMBEDS,
    "token_embed": GIVES_TOKENS,
    "score": ("score",),
    "classify": CLASSIFIES,
}
# The options of a call that a request may have beside those of all, by task.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "embed": ("dimensions", "normalize"),
    "token_embed": ("dimensions", "normalize", "pool_factor"),
    "score": (),
    "classify": (),
}


async def embed_all(body: EmbedAllRequest, request: Request) -> Response:
    """A vector for each token of each text, as Text Embeddings Inference gives them."""
    model = model_for(request, body.model, GIVES_TOKENS)
    options = options_of(body, "pool_factor")
    answer = await ask_for_texts(request, model, model.engine.submit_tokens, body, options)
    items = (matrix_parts(rows) for rows in answer.result.vectors)
    return await SlicedResponse.of(item_slices(b"[", items, b"]"), answer.headers)


async def pooling(body: PoolingRequest, request: Request) -> Response:
    """What a model gives of texts, as vLLM gives it."""
    model = _model(request, body)
    task = body.task or _TASKS[model.kind]
    engine = model.engine
    calls: Mapping[str, Any] = {"embed": engine.submit, "token_embed": engine.submit_tokens}
    submit = calls.get(task, engine.submit_classify)
    answer = await ask_for_texts(request, model, submit, body, _options(body, task))
    found = answer.result.rows if task in ("score", "classify") else answer.result.vectors
    items = _pooled(found, as_base64=body.encoding_format == "base64")
    slices = list_slices(request, "list", body.model or model.name, items, answer.tokens)
    return await SlicedResponse.of(slices, answer.headers)


def _model(request: Request, body: PoolingRequest) -> ServedModel:
    """The model that gives what is asked for. Raises `ApiError` 400."""
    kinds = tuple(_TASKS) if body.task is None else _KINDS[body.task]
    model = model_for(request, body.model, kinds)
    model.require_text_classes()
    return model


def _options(body: PoolingRequest, task: str) -> dict[str, Any]:
    """Of the call. Raises `ApiError` 400 for a field that the task has no use for."""
    known, usual = _OPTIONS[task], PoolingRequest.model_fields
    scores = task in ("score", "classify")
    every = {name for names in _OPTIONS.values() for name in names}
    for name in sorted((every - set(known)) | ({"input_type"} if scores else {"use_activation"})):
        if getattr(body, name) != usual[name].default:
            raise ApiError.about(name, f"it has no meaning for the task {task!r}; leave it out")
    options = options_of(body, *known)
    if scores:
        del options["task"]
        options["activation"] = "none" if body.use_activation is False else "auto"
    return options


def _pooled(
    found: Iterable[npt.NDArray[np.float32]], *, as_base64: bool
) -> Iterator[Iterator[bytes]]:
    """vLLM's object of each text."""
    for index, rows in enumerate(found):
        yield _pooled_parts(index, rows, as_base64)


def _pooled_parts(index: int, rows: npt.NDArray[np.float32], as_base64: bool) -> Iterator[bytes]:
    yield f'{{"object":"pooling","index":{index},"data":'.encode()
    if as_base64:
        yield b'"' + b2a_base64(np.ascontiguousarray(rows, "<f4").data, newline=False) + b'"'
    elif rows.ndim == 2:
        yield from matrix_parts(rows)
    else:
        yield json_bytes(np.ascontiguousarray(rows))
    yield b"}"
