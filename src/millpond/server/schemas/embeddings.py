"""The bodies of requests and responses, as in the OpenAPI document.

The responses to POST are only declared here; `calls.encoding` writes them from arrays.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from . import foreign_fields

__all__ = [
    "MAX_INPUTS",
    "UNKNOWN_FIELD",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "ErrorResponse",
    "HealthResponse",
    "ModelCard",
    "ModelList",
    "RequestBody",
    "TokenizeRequest",
    "TokenizeResponse",
    "VersionResponse",
    "input_kind",
]

MAX_INPUTS = 2048
MAX_TOKENIZED = 2**20  # characters of a text, or token ids
UNKNOWN_FIELD = "unknown_field"
"""Type of the validation error for an unknown field; its `ctx` has the `name`."""
# Validation stops at the first invalid item: errors for millions of items would take minutes.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]


def input_kind(value: Any) -> Literal["text", "texts", "tokens", "token_lists"]:
    """Of what a request gives to embed, validated or not; token ids may be arrays."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, np.ndarray):
        return "tokens"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list | np.ndarray):
        return "token_lists"
    return "tokens" if isinstance(first, int) else "texts"


Input = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[TokenIds, Tag("tokens")]
    | Annotated[TokenLists, Tag("token_lists")],
    Discriminator(input_kind),
]
OptionalModel = Annotated[
    str | None,
    Field(
        description="A name of `/v1/models`. Optional where one model is served, or one of the "
        "kind that the route needs."
    ),
]
TextInput = Annotated[
    Input,
    Field(
        description="One text or several, or the token ids of one or several.",
        examples=[["Hello, world!"]],
    ),
]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Side = Annotated[Literal["end", "start", "error"] | None, BeforeValidator(foreign_fields.truncate)]
Truncate = Annotated[
    Side,
    Field(
        description="Where a text that is too long is truncated, or `error`; by default the "
        "model's side, mostly the end. Text Embeddings Inference's `false` is `error`."
    ),
]
Direction = Annotated[
    Literal["start", "end"] | None,
    BeforeValidator(foreign_fields.truncate),
    Field(description="`Left` or `Right`: where `truncate` cuts; by default the model's side."),
]
InputType = Annotated[
    Literal["query", "document"] | None,
    BeforeValidator(foreign_fields.input_type),
    Field(description="Millpond's own. Adds the prompt that the model saved for it."),
]
# Other servers' default is the number 0.
Priority = Annotated[
    Literal["interactive", "bulk"] | None,
    BeforeValidator(lambda value: None if value == 0 and value is not False else value),
]
TextPriority = Annotated[
    Priority,
    Field(
        description="Millpond's own. Interactive requests do not wait for bulk ones. By default a "
        "query, or a single text that is not very long, is interactive."
    ),
]
Dimensions = Annotated[
    Count | None, Field(description="Keep the first N dimensions and restore unit length.")
]
Normalize = Annotated[
    bool | None,
    Field(description="Scale to unit length, or do not; by default as the model."),
]
PromptName = Annotated[
    str | None, Field(description="Millpond's own. Name of a prompt saved with the model.")
]


class RequestBody(BaseModel):
    """The body of a POST. A misspelt option is an error; "5" is not 5."""

    LARGE_FIELDS: ClassVar[tuple[str, ...]]
    """Those whose size has no small bound."""
    FOREIGN: ClassVar[foreign_fields.ForeignFields] = foreign_fields.ForeignFields()
    """Fields of other servers that this request may have."""
    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def is_meant_by(cls, body: dict[str, Any]) -> bool:
        """Whether a body is one of these, where a route takes several: by its first large field."""
        return cls.LARGE_FIELDS[0] in body

    @property
    def truncate_option(self) -> Any:
        """`truncate`, or else the side where another field names it; None where neither is."""
        sides = (getattr(self, name, None) for name in ("truncate", "truncation_direction"))
        return next(filter(None, sides), None)

    @model_validator(mode="before")
    @classmethod
    def _stop_at_an_unknown_field(cls, body: Any) -> Any:
        """`extra` is for the OpenAPI document: pydantic would report every unknown field."""
        if isinstance(body, dict):
            unknown = next((name for name in body if name not in cls.model_fields), None)
            if unknown is not None:
                # pydantic refuses lone surrogates
                name = unknown.encode("utf-8", "backslashreplace").decode()
                raise PydanticCustomError(UNKNOWN_FIELD, "not known here", {"name": name})
        return body


class EmbeddingRequest(RequestBody):
    """OpenAI's request, with Millpond's own options beside it."""

    LARGE_FIELDS = ("input",)
    FOREIGN = foreign_fields.OF_EMBEDDINGS

    input: TextInput
    model: OptionalModel = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Field(description="`base64` encodes little-endian float32, which is much smaller."),
    ] = "float"
    dimensions: Dimensions = None
    user: Annotated[str | None, Field(description="Accepted and ignored.")] = None
    input_type: InputType = None
    prompt_name: PromptName = None
    truncate: Truncate = None
    normalize: Normalize = None
    priority: TextPriority = None


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: Annotated[list[float] | str, Field(description="A string with `base64`.")]


class Usage(BaseModel):
    prompt_tokens: Annotated[
        int, Field(description="Tokens the model read, including special tokens.")
    ]
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """OpenAI's response."""

    object: Literal["list"]
    data: Annotated[list[Embedding], Field(description="In the order of the input.")]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="When the server loaded it, in Unix seconds.")]
    owned_by: Literal["millpond"] = "millpond"
    root: Annotated[str, Field(description="Name of the checkpoint.")]
    kind: Annotated[
        str,
        Field(description="`embed`, `score` (a reranker), `classify`, `sparse` or `multi_vector`."),
    ]
    labels: Annotated[
        list[str], Field(description="Names of the scores or classes; none of an embedder.")
    ]
    dimension: Annotated[int, Field(description="Of the vectors, or how many labels there are.")]
    max_model_len: int | None
    device: str
    dtype: str
    execution: Annotated[str, Field(description="`packed`, or the other way it runs.")]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeRequest(RequestBody):
    LARGE_FIELDS = ("prompt",)

    prompt: Annotated[
        str,
        Field(
            max_length=MAX_TOKENIZED,
            description="One text, which is not truncated.",
            examples=["Hello, world!"],
        ),
    ]
    model: OptionalModel = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = False
    input_type: InputType = None
    prompt_name: PromptName = None


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestBody):
    LARGE_FIELDS = ("tokens",)

    tokens: Annotated[
        list[TokenId], Field(max_length=MAX_TOKENIZED, fail_fast=True, examples=[[101, 102]])
    ]
    model: OptionalModel = None


class DetokenizeResponse(BaseModel):
    prompt: str


class HealthResponse(BaseModel):
    status: Literal["ready"] = "ready"
    models: Annotated[dict[str, str], Field(description="The state of each model's engine.")]


class VersionResponse(BaseModel):
    version: str


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error."""

    error: ErrorBody
