"""`POST /embed_sparse`: the weights of a text's terms."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from fastapi import Request, Response

from ...sparse.embeddings import SparseEmbeddings
from ...sparse.vectors import SparseVector
from ..calls.encoding import SLICE_LENGTH, SlicedResponse, item_slices
from ..calls.engine_call import MANY_TEXTS, ask, model_for
from ..models import GIVES_SPARSE, ServedModel
from ..schemas.embeddings import input_kind
from ..schemas.token_vectors import EmbedSparseRequest
from .embeddings import priority_of_texts

__all__ = ["embed_sparse"]


async def embed_sparse(body: EmbedSparseRequest, request: Request) -> Response:
    """Of each text its terms by their ids, as Text Embeddings Inference gives them."""
    model = model_for(request, body.model, GIVES_SPARSE)
    texts: Any = body.inputs
    check_ids = not request.app.state.settings.allow_raw_token_ids
    priority = body.priority or priority_of_texts(texts, body.input_type)
    answer = await ask(
        request,
        model,
        lambda: _submit(model, body, priority, check_ids=check_ids),
        priority=priority,
        field="inputs",
        has_much=isinstance(texts, list) and len(texts) > MANY_TEXTS,
    )
    items = (_parts(vector) for vector in answer.result.vectors)
    return await SlicedResponse.of(item_slices(b"[", items, b"]"), answer.headers)


def _submit(
    model: ServedModel, body: EmbedSparseRequest, priority: str, *, check_ids: bool
) -> Future[SparseEmbeddings]:
    texts: Any = body.inputs
    kind = input_kind(texts)
    options: dict[str, Any] = {}
    if kind in ("tokens", "token_lists"):
        if check_ids:
            model.require_special_tokens([texts] if kind == "tokens" else texts, "inputs")
        if body.input_type is None and body.prompt_name is None:
            options["prompt"] = ""  # ids are whole texts, with the default prompt
    elif body.prompt_name is not None:
        model.prompt(body.input_type, body.prompt_name)
    return model.engine.submit_sparse(
        texts,
        wait=False,
        task=body.input_type,
        prompt_name=body.prompt_name,
        max_active_dims=body.max_active_dims,
        min_weight=body.min_weight,
        truncate=body.truncate or body.truncation_direction,
        priority=priority,
        **options,
    )


def _parts(vector: SparseVector) -> Iterator[bytes]:
    """A JSON array of objects, in parts that do not hold the interpreter for long."""
    yield b"["
    for start in range(0, len(vector), SLICE_LENGTH):
        part = slice(start, start + SLICE_LENGTH)
        indices, values = vector.indices[part].tolist(), vector.values[part].astype(str).tolist()
        pairs = zip(indices, values, strict=True)
        written = ",".join(f'{{"index":{index},"value":{value}}}' for index, value in pairs)
        yield (b"," if start else b"") + written.encode()
    yield b"]"
