"""Cohere's bodies of `/v1/embed` and `/v2/embed`.

As in its reference: https://docs.cohere.com/reference/embed
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from typing_extensions import TypedDict

from . import foreign_fields
from .embeddings import MAX_INPUTS, Count, OptionalModel, RequestBody, Side

__all__ = [
    "CohereEmbedRequest",
    "CohereEmbedResponse",
    "CohereErrorResponse",
    "CohereFloatsResponse",
    "EmbeddingKind",
]

EmbeddingKind = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class EmbedInput(TypedDict):
    content: Annotated[list[TextPart], Field(min_length=1, max_length=1)]


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _priority(value: Any) -> Any:
    """Cohere's is a number, of which 0 comes first."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
        return "bulk" if value else None
    return value


class CohereEmbedRequest(RequestBody):
    """Cohere's request, of its first version and its second."""

    LARGE_FIELDS = ("texts", "inputs")
    FOREIGN = foreign_fields.ForeignFields(default_only={"images": ([],)})

    texts: Annotated[
        list[str],
        Field(
            default_factory=list,
            max_length=MAX_INPUTS,
            fail_fast=True,
            description="The texts, or none where `inputs` holds them.",
            examples=[["Hello, world!"]],
        ),
    ]
    inputs: Annotated[
        list[EmbedInput],
        Field(
            default_factory=list,
            max_length=MAX_INPUTS,
            fail_fast=True,
            description="Each with one text.",
        ),
    ]
    model: OptionalModel = None
    input_type: Annotated[
        Literal["search_document", "search_query", "classification", "clustering"] | None,
        BeforeValidator(_lower),
        Field(
            description="Adds the prompt that the model saved: for documents, for queries, or "
            "under that name."
        ),
    ] = None
    embedding_types: Annotated[
        list[EmbeddingKind] | None,
        Field(
            min_length=1,
            max_length=6,
            description="`base64` holds little-endian float32. `int8` is each vector scaled so "
            "that its largest element is 127 or -127, and `uint8` is 128 more.",
        ),
    ] = None
    output_dimension: Annotated[Count | None, Field(description="Keep the first N dimensions.")] = (
        None
    )
    truncate: Annotated[
        Side,
        Field(description="`START`, `END`, or `NONE`, which refuses what is too long."),
    ] = None
    max_tokens: Annotated[Count | None, Field(description="No fewer than the model reads.")] = None
    priority: Annotated[
        Literal["interactive", "bulk"] | None,
        BeforeValidator(_priority),
        Field(description="0 or more; above 0 others come first."),
    ] = None


class ByType(BaseModel):
    floats: Annotated[list[list[float]] | None, Field(alias="float")] = None
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class ApiVersion(BaseModel):
    version: str


class BilledUnits(BaseModel):
    input_tokens: int


class Meta(BaseModel):
    api_version: ApiVersion
    billed_units: Annotated[BilledUnits, Field(description="Tokens that the model read.")]


class CohereEmbedResponse(BaseModel):
    """Cohere's response by type."""

    response_type: Literal["embeddings_by_type"]
    id: str
    embeddings: ByType
    texts: list[str]
    meta: Meta


class CohereFloatsResponse(BaseModel):
    """That of its first version where no types are asked for."""

    response_type: Literal["embeddings_floats"]
    id: str
    embeddings: list[list[float]]
    texts: list[str]
    meta: Meta


class CohereErrorResponse(BaseModel):
    """Cohere's error."""

    message: str
