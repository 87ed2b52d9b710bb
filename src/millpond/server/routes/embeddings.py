"""`POST /v1/embeddings`, and what every route for dense vectors asks an engine."""

from __future__ import annotations

from fastapi import Request, Response

from ...embeddings import Embeddings
from ..calls.encoding import SlicedResponse, embedding_slices
from ..calls.engine_call import Answer, model_for
from ..calls.texts import ask_for_texts, options_of
from ..models import EMBEDS, ServedModel
from ..schemas.embeddings import EmbeddingRequest

__all__ = ["create_embedding", "embeddings_for"]


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
    request: Request, body: EmbeddingRequest, *, field: str | None = None
) -> tuple[ServedModel, Answer[Embeddings]]:
    """The model that a request asks, and its answer. Raises `ApiError`, which names the field."""
    model = model_for(request, body.model, EMBEDS)
    options = options_of(body, "dimensions", "normalize")
    answer = await ask_for_texts(request, model, model.engine.submit, body, options, field=field)
    return model, answer
