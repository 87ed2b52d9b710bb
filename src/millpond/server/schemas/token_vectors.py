"""The bodies of the routes for token vectors, in the shapes of other servers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from . import foreign_fields
from .embeddings import (
    Count,
    Dimensions,
    Direction,
    InputType,
    Normalize,
    OptionalModel,
    PromptName,
    RequestBody,
    TextInput,
    TextPriority,
    Truncate,
    Usage,
)

__all__ = [
    "EmbedAllRequest",
    "EmbedSparseRequest",
    "PoolingRequest",
    "PoolingResponse",
    "SparseValue",
    "Task",
]

Task = Literal["embed", "token_embed", "classify", "score"]
PoolFactor = Annotated[
    float,
    Field(
        ge=1,
        allow_inf_nan=False,
        description="Millpond's own. One vector of a document stays for N, by clusters.",
    ),
]


class _TextsRequest(RequestBody):
    """What both routes of Text Embeddings Inference take."""

    LARGE_FIELDS = ("inputs",)
    FOREIGN = foreign_fields.OF_TEI

    inputs: TextInput
    model: OptionalModel = None
    truncate: Truncate = None
    truncation_direction: Direction = None
    prompt_name: PromptName = None
    input_type: InputType = None
    priority: TextPriority = None


class EmbedAllRequest(_TextsRequest):
    """Text Embeddings Inference's request."""

    pool_factor: PoolFactor = 1


class EmbedSparseRequest(_TextsRequest):
    """Text Embeddings Inference's request."""

    max_active_dims: Annotated[
        Count | None,
        Field(
            description="Millpond's own. Keep the N heaviest terms; by default what the "
            "checkpoint says, all as a rule.",
        ),
    ] = None
    min_weight: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="Millpond's own. Keep weights above it."),
    ] = 0.0


class SparseValue(BaseModel):
    """A term of a text."""

    index: Annotated[int, Field(description="Its id in the model's vocabulary.")]
    value: Annotated[float, Field(description="Its weight.")]


class PoolingRequest(RequestBody):
    """vLLM's request."""

    LARGE_FIELDS = ("input",)
    FOREIGN = foreign_fields.OF_POOLING

    input: TextInput
    model: OptionalModel = None
    task: Annotated[
        Task | None,
        Field(
            description="`token_embed`: a vector for each token; `embed`: one for each text; "
            "`classify` and `score`: the scores of a classifier or reranker. By default what the "
            "model is for."
        ),
    ] = None
    input_type: InputType = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Field(
            description="`base64` encodes little-endian float32, row after row for token vectors."
        ),
    ] = "float"
    dimensions: Dimensions = None
    normalize: Normalize = None
    use_activation: Annotated[
        bool | None,
        Field(description="Of `classify` and `score`: `false` gives logits."),
    ] = None
    truncate: Truncate = None
    prompt_name: PromptName = None
    pool_factor: PoolFactor = 1
    priority: TextPriority = None


class Pooled(BaseModel):
    object: Literal["pooling"]
    index: int
    data: Annotated[
        list[list[float]] | list[float] | str,
        Field(description="A list of vectors, a vector, scores, or a string with `base64`."),
    ]


class PoolingResponse(BaseModel):
    """vLLM's response."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: Annotated[list[Pooled], Field(description="In the order of the input.")]
    usage: Usage
