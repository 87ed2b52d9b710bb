"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from fastapi import Request

from ..models import ServedModel
from ..schemas.embeddings import ModelCard, ModelList

__all__ = ["list_models", "retrieve_model"]


async def list_models(request: Request) -> ModelList:
    """Every name that a request can give as `model`."""
    return ModelList(data=[_card(*named) for named in request.app.state.models.by_name()])


async def retrieve_model(model_id: str, request: Request) -> ModelCard:
    """The model of that name."""
    return _card(model_id, request.app.state.models.find(model_id))


def _card(name: str, model: ServedModel) -> ModelCard:
    info = model.engine.info()
    return ModelCard(
        id=name,
        created=model.created,
        root=info.model.name,
        kind=info.kind,
        labels=list(info.labels),
        dimension=info.dimension,
        max_model_len=info.max_length,
        device=info.device,
        dtype=info.dtype,
        execution=info.execution,
    )
