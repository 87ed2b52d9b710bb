"""Text Embeddings Inference's bodies, but for those that score and classify.

As in its OpenAPI document, version 1.7:
https://huggingface.github.io/text-embeddings-inference/
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag
from typing_extensions import TypedDict

from . import foreign_fields
from .embeddings import (
    MAX_INPUTS,
    MAX_TOKENIZED,
    Count,
    Direction,
    InputType,
    OptionalModel,
    Priority,
    RequestBody,
    Side,
    TextInput,
    Texts,
    TokenId,
)

__all__ = [
    "DecodeRequest",
    "EmbedRequest",
    "InfoResponse",
    "SimilarityRequest",
    "TeiErrorResponse",
]

TeiPromptName = Annotated[str | None, Field(description="Name of a prompt saved with the model.")]
TeiTruncate = Annotated[
    Side,
    Field(
        description="`true`, which is the default here, cuts a text that is too long; `false` or "
        "`error` refuses it."
    ),
]


class EmbedRequest(RequestBody):
    """Text Embeddings Inference's request for embeddings."""

    LARGE_FIELDS = ("inputs",)
    FOREIGN = foreign_fields.ForeignFields(default_only={"encoding_format": ("float",)})

    inputs: TextInput
    normalize: Annotated[bool, Field(description="Scale to unit length.")] = True
    truncate: TeiTruncate = None
    truncation_direction: Direction = None
    prompt_name: TeiPromptName = None
    dimensions: Annotated[Count | None, Field(description="Keep the first N dimensions.")] = None
    model: OptionalModel = None
    input_type: InputType = None
    priority: Annotated[Priority, Field(description="Millpond's own, as in `/v1/embeddings`.")] = (
        None
    )


class SimilarityInput(TypedDict):
    source_sentence: str
    sentences: Texts


class SimilarityParameters(BaseModel, extra="forbid"):
    truncate: TeiTruncate = None
    truncation_direction: Direction = None
    prompt_name: TeiPromptName = None


class SimilarityRequest(RequestBody):
    """Text Embeddings Inference's request for cosine similarities."""

    LARGE_FIELDS = ("inputs",)

    inputs: Annotated[
        SimilarityInput,
        Field(examples=[{"source_sentence": "bread", "sentences": ["a bakery", "a mill"]}]),
    ]
    parameters: SimilarityParameters | None = None
    model: OptionalModel = None

    @classmethod
    def is_meant_by(cls, body: dict[str, Any]) -> bool:
        return isinstance(body.get("inputs"), dict)


def _ids_kind(value: Any) -> Literal["one", "several"]:
    return "several" if isinstance(value, list) and value and isinstance(value[0], list) else "one"


Ids = Annotated[list[TokenId], Field(max_length=MAX_TOKENIZED, fail_fast=True)]
IdLists = Annotated[list[Ids], Field(max_length=MAX_INPUTS, fail_fast=True)]


class DecodeRequest(RequestBody):
    """Text Embeddings Inference's request for the texts of token ids."""

    LARGE_FIELDS = ("ids",)

    ids: Annotated[
        Annotated[Ids, Tag("one")] | Annotated[IdLists, Tag("several")],
        Discriminator(_ids_kind),
        Field(description="Of one text or several.", examples=[[101, 102]]),
    ]
    skip_special_tokens: Annotated[
        bool, Field(description="Leave out those that the tokenizer adds to every text.")
    ] = True
    model: OptionalModel = None


class PoolingInfo(BaseModel):
    pooling: str


class LabelsInfo(BaseModel):
    id2label: dict[str, str]
    label2id: dict[str, int]


class EmbeddingType(BaseModel):
    embedding: PoolingInfo


class RerankerType(BaseModel):
    reranker: LabelsInfo


class ClassifierType(BaseModel):
    classifier: LabelsInfo


class InfoResponse(BaseModel):
    """What a model is, in Text Embeddings Inference's shape."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: EmbeddingType | RerankerType | ClassifierType
    max_concurrent_requests: Annotated[
        int,
        Field(
            description="How many of the longest texts may wait; beyond them a request gets a "
            "429. What is limited are tokens, so of shorter texts it is more."
        ),
    ]
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int = MAX_INPUTS
    auto_truncate: bool = True
    tokenization_workers: int = 2  # one for each priority
    version: Annotated[str, Field(description="Of Millpond.")]
    sha: str | None = None
    docker_label: str | None = None


class TeiErrorResponse(BaseModel):
    """Text Embeddings Inference's error."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation"]
