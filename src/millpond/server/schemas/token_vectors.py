"""The bodies of the routes for token vectors, in the shapes of other servers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from . import foreign_fields
from .embeddings import Input, InputType, OptionalModel, Priority, PromptName, RequestBody, Usage

__all__ = [
    "EmbedAllRequest",
    "EmbedSparseRequest",
    "PoolingRequest",
    "PoolingResponse",
    "SparseValue",
    "Task",
]

Task = Literal["embed", "token_embed", "classify", "score"]
Truncate = Annotated[
    Literal["end", "start", "error"] | None,
    BeforeValidator(foreign_fields.truncate),
    Field(
        description="Where a text that is too long is truncated, or `error`; by default the "
        "model's side, mostly the end. Text Embeddings Inference's `false` is `error`."
    ),
]
BulkPriority = Annotated[
    Priority,
    Field(
        description="Millpond's own. Interactive requests do not wait for bulk ones. By default a "
        "query, or a single text that is not very long, is interactive."
    ),
]
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

    inputs: Annotated[
        Input,
        Field(
            description="One text or several, or the token ids of one or several.",
            examples=[["Hello, world!"]],
        ),
    ]
    model: OptionalModel = None
    truncate: Truncate = None
    truncation_direction: Annotated[
        Literal["start", "end"] | None,
        BeforeValidator(foreign_fields.truncate),
        Field(description="`left` or `right`: where `truncate` cuts."),
    ] = None
    prompt_name: PromptName = None
    input_type: InputType = None
    priority: BulkPriority = None


class EmbedAllRequest(_TextsRequest):
    """Text Embeddings Inference's request."""

    pool_factor: PoolFactor = 1


class EmbedSparseRequest(_TextsRequest):
    """Text Embeddings Inference's request."""

    max_active_dims: Annotated[
        int | None,
        Field(
            ge=1,
            lt=2**31,
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

    input: Annotated[
        Input,
        Field(
            description="One text or several, or the token ids of one or several.",
            examples=[["Hello, world!"]],
        ),
    ]
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
    dimensions: Annotated[
        int | None,
        Field(ge=1, lt=2**31, description="Keep the first N dimensions and restore unit length."),
    ] = None
    normalize: Annotated[
        bool | None,
        Field(description="Scale vectors to unit length, or do not; by default as the model."),
    ] = None
    use_activation: Annotated[
        bool | None,
        Field(description="Of `classify` and `score`: `false` gives logits."),
    ] = None
    truncate: Truncate = None
    prompt_name: PromptName = None
    pool_factor: PoolFactor = 1
    priority: BulkPriority = None


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
