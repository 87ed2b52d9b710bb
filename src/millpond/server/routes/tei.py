"""Text Embeddings Inference's `POST /embed`, `/similarity`, `/decode`, `/`, and `GET /info`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version as installed_version
from itertools import chain

import numpy as np
from fastapi import Request, Response

from ...embeddings import similarity as cosines
from ...errors import InvalidInput
from ..calls.encoding import (
    SlicedResponse,
    array_slices,
    item_slices,
    json_bytes,
    matrix_parts,
)
from ..errors import ApiError
from ..models import ServedModel
from ..schemas.embeddings import EmbeddingRequest
from ..schemas.scores import RerankTextsRequest
from ..schemas.tei import (
    ClassifierType,
    DecodeRequest,
    EmbeddingType,
    EmbedRequest,
    InfoResponse,
    LabelsInfo,
    PoolingInfo,
    RerankerType,
    SimilarityParameters,
    SimilarityRequest,
)
from .embeddings import embeddings_for
from .rerank import rerank
from .tokens import TokenizingSlots, tokenizing_model

__all__ = ["decode", "embed", "info", "root", "similarity"]

_NO_LIMIT = 2**31 - 1  # tokens; the format has no word for it


async def embed(body: EmbedRequest, request: Request) -> Response:
    """Embed texts, as Text Embeddings Inference does."""
    call = EmbeddingRequest.model_construct(
        input=body.inputs,
        model=body.model,
        input_type=body.input_type,
        prompt_name=body.prompt_name,
        dimensions=body.dimensions,
        normalize=body.normalize,
        truncate=body.truncate_option,
        priority=body.priority,
    )
    _, answer = await embeddings_for(request, call, field="inputs")
    slices = item_slices(b"", [matrix_parts(answer.result.vectors)], b"")
    return await SlicedResponse.of(slices, answer.headers)


async def similarity(body: SimilarityRequest, request: Request) -> Response:
    """The cosine similarity of a text to others, as in Text Embeddings Inference."""
    options = body.parameters or SimilarityParameters()
    call = EmbeddingRequest.model_construct(
        input=[body.inputs["source_sentence"], *body.inputs["sentences"]],
        model=body.model,
        prompt_name=options.prompt_name,
        truncate=options.truncate or options.truncation_direction,
    )
    _, answer = await embeddings_for(request, call, field="sentences")
    source, *sentences = answer.result.vectors
    content = json_bytes(cosines(source, np.asarray(sentences)))
    return await SlicedResponse.of([content], answer.headers)


async def root(
    body: SimilarityRequest | RerankTextsRequest | EmbedRequest, request: Request
) -> Response:
    """What Text Embeddings Inference does at `/`: embeds `inputs`, or ranks `texts`."""
    if isinstance(body, SimilarityRequest):
        return await similarity(body, request)
    if isinstance(body, RerankTextsRequest):
        return await rerank(body, request)
    return await embed(body, request)


async def decode(body: DecodeRequest, request: Request) -> Response:
    """The texts of token ids, as in Text Embeddings Inference."""
    model = tokenizing_model(body.model, request)
    is_one = not len(body.ids) or not isinstance(body.ids[0], list | np.ndarray)
    lists: list[list[int]] = [body.ids] if is_one else body.ids  # type: ignore[assignment, list-item]
    left_out = frozenset(chain(*model.special_tokens) if body.skip_special_tokens else ())
    slots: TokenizingSlots = request.app.state.tokenizing_slots
    size = sum(map(len, lists))
    return await slots.run(size, lambda: _decoded(model, lists, left_out))


async def info(request: Request, model: str | None = None) -> InfoResponse:
    """A model's description in Text Embeddings Inference's shape; without a name the first's."""
    models = request.app.state.models
    found = next(iter(models)) if model is None else models.find(model)
    engine_info = found.engine.info()
    longest = engine_info.max_length or engine_info.max_batch_tokens
    return InfoResponse(
        model_id=engine_info.model.name,
        model_sha=engine_info.model.revision,
        model_dtype=engine_info.dtype,
        model_type=_model_type(found),
        max_concurrent_requests=max(1, engine_info.max_queue_tokens // longest),
        max_input_length=engine_info.max_length or _NO_LIMIT,
        max_batch_tokens=engine_info.max_batch_tokens,
        version=installed_version("millpond"),
    )


def _model_type(model: ServedModel) -> EmbeddingType | RerankerType | ClassifierType:
    engine_info = model.engine.info()
    if model.kind not in ("score", "classify"):
        return EmbeddingType(embedding=PoolingInfo(pooling=_pooling(model)))
    labels = LabelsInfo(
        id2label={str(place): label for place, label in enumerate(engine_info.labels)},
        label2id={label: place for place, label in enumerate(engine_info.labels)},
    )
    if model.kind == "score":
        return RerankerType(reranker=labels)
    return ClassifierType(classifier=labels)


def _pooling(model: ServedModel) -> str:
    """The modes of the first route, or the kinds of its modules where none pools."""
    modules = model.engine.info().model.routes[0].modules
    modes = [mode for module in modules for mode in module.options.get("modes", ())]
    return "+".join(modes or [module.kind for module in modules[-1:]])


def _decoded(
    model: ServedModel, lists: list[list[int]], left_out: frozenset[int]
) -> Iterator[bytes]:
    kept = [[one for one in ids if one not in left_out] for ids in lists]
    try:
        yield from array_slices(model.engine.detokenize(kept))
    except InvalidInput as error:
        raise ApiError.about("ids", error.args[0], code="invalid_token_ids") from error
