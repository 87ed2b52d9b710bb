"""`POST /v1/embeddings`, and what every route that embeds asks an engine."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, cast

from fastapi import Request, Response

from ...embeddings import Embeddings
from ..calls.encoding import SlicedResponse, embedding_slices
from ..calls.engine_call import LONGEST_QUERY, MANY_TEXTS, Answer, ask, model_for
from ..errors import ApiError
from ..models import EMBEDS, ServedModel
from ..schemas.embeddings import EmbeddingRequest, input_kind

__all__ = ["create_embedding", "embeddings_for", "priority_of_texts"]


async def create_embedding(body: EmbeddingRequest, request: Request) -> Response:
    """OpenAI's embeddings, with a few options of Millpond's own."""
    model, answer = await embeddings_for(request, body)
    slices = embedding_slices(
        answer.result.vectors,
        model=body.model or model.name,
        tokens=answer.tokens,
        as_base64=body.encoding_format == "base64",
    )
    return await SlicedResponse.of(slices, answer.headers)


async def embeddings_for(
    request: Request, body: EmbeddingRequest, *, field: str = "input"
) -> tuple[ServedModel, Answer[Embeddings]]:
    """The model that a request asks, and its answer. Raises `ApiError`, which names the field."""
    model = model_for(request, body.model, EMBEDS)
    priority = _priority(body)
    check_ids = not request.app.state.settings.allow_raw_token_ids
    answer = await ask(
        request,
        model,
        lambda: _submit(model, body, priority, field=field if check_ids else None),
        priority=priority,
        field=field,
        has_much=isinstance(body.input, list) and len(body.input) > MANY_TEXTS,
    )
    return model, answer


def _submit(
    model: ServedModel, body: EmbeddingRequest, priority: str, *, field: str | None
) -> Future[Embeddings]:
    """`field` is the name of what token ids are checked in; None where they are not."""
    texts = cast(Any, body.input)
    kind = input_kind(texts)
    options: dict[str, Any] = {}
    if kind in ("tokens", "token_lists"):
        if field is not None:
            model.require_special_tokens([texts] if kind == "tokens" else texts, field)
        _require_no_prompt(model, body)
        if body.input_type is None and body.prompt_name is None:
            options["prompt"] = ""  # ids are whole texts, with the default prompt
    elif body.prompt_name is not None:
        model.prompt(body.input_type, body.prompt_name)
    return model.engine.submit(
        texts,
        wait=False,
        task=body.input_type,
        prompt_name=body.prompt_name,
        dimensions=body.dimensions,
        normalize=body.normalize,
        truncate=body.truncate,
        priority=priority,
        **options,
    )


def _require_no_prompt(model: ServedModel, body: EmbeddingRequest) -> None:
    """Of a request with token ids. Raises `ApiError` 400 where it asks for a prompt."""
    asked = "input_type" if body.prompt_name is None else "prompt_name"
    if getattr(body, asked) is not None and model.prompt(body.input_type, body.prompt_name):
        raise ApiError(
            400,
            f"{asked}: its prompt cannot be put in front of token ids, which are whole texts; "
            "leave it out, or send texts",
            param=asked,
            code="invalid_value",
        )


def _priority(body: EmbeddingRequest) -> str:
    if body.priority is not None:
        return body.priority
    return priority_of_texts(cast(Any, body.input), body.input_type)


def priority_of_texts(texts: Any, input_type: str | None) -> str:
    """Of a request that does not say: a query is interactive, or a single text of some length."""
    if input_type == "query":
        return "interactive"
    if input_kind(texts) in ("texts", "token_lists"):
        if len(texts) > 1:
            return "bulk"
        (texts,) = texts
    return "interactive" if len(texts) <= LONGEST_QUERY else "bulk"
