"""The bodies that arrive and leave, as the OpenAPI document has them.

The embedding answer is declared here and built in `encoding`, from arrays.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

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

from .routes import foreign_fields

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
    "TokenizeRequest",
    "TokenizeResponse",
    "VersionResponse",
]

MAX_INPUTS = 2048
MAX_TOKENIZED = 2**20  # characters of a text, or token ids
UNKNOWN_FIELD = "unknown_field"
"""The type of the error for a field that a request does not have; its `ctx` has the `name`."""
# A list stops at its first bad item: a body may hold millions, and an error for each takes minutes.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]


def _input_kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return "token_lists"
    return "tokens" if isinstance(first, int) else "texts"


Input = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[TokenIds, Tag("tokens")]
    | Annotated[TokenLists, Tag("token_lists")],
    Discriminator(_input_kind),
]
OptionalModel = Annotated[
    str | None,
    Field(description="A name of `/v1/models`. May be left out where one model is served."),
]
InputType = Annotated[
    Literal["query", "document"] | None,
    BeforeValidator(foreign_fields.input_type),
    Field(description="Millpond's own. Puts the prompt in front that the model saved for it."),
]
PromptName = Annotated[
    str | None, Field(description="Millpond's own. Name of a prompt that the model saved.")
]


class _Request(BaseModel):
    # A misspelt option is an error; "5" is not 5.
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _stop_at_an_unknown_field(cls, body: Any) -> Any:
        """`extra` is for the document: pydantic would list every unknown field of a million."""
        if isinstance(body, dict):
            unknown = next((name for name in body if name not in cls.model_fields), None)
            if unknown is not None:
                # pydantic holds no half of a surrogate pair
                name = unknown.encode("utf-8", "backslashreplace").decode()
                raise PydanticCustomError(UNKNOWN_FIELD, "not known here", {"name": name})
        return body


class EmbeddingRequest(_Request):
    """OpenAI's request, with Millpond's own options beside it."""

    input: Annotated[
        Input,
        Field(
            description="One text or several, or the model's own token ids of one or several.",
            examples=[["Hello, world!"]],
        ),
    ]
    model: OptionalModel = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Field(description="`base64` is that of little-endian float32, and much smaller."),
    ] = "float"
    dimensions: Annotated[
        int | None,
        Field(ge=1, lt=2**31, description="Keep the first so many, and restore unit length."),
    ] = None
    user: Annotated[str | None, Field(description="Accepted and ignored.")] = None
    input_type: InputType = None
    prompt_name: PromptName = None
    truncate: Annotated[
        Literal["end", "start", "error"] | None,
        BeforeValidator(foreign_fields.truncate),
        Field(
            description="Millpond's own. Where a text that is too long loses tokens, or `error`; "
            "by default as the model says, the end as a rule."
        ),
    ] = None
    normalize: Annotated[
        bool | None,
        Field(description="Millpond's own. Unit length, or not; by default as the model says."),
    ] = None
    priority: Annotated[
        Literal["interactive", "bulk"] | None,
        BeforeValidator(lambda value: None if value == 0 and value is not False else value),
        Field(
            description="Millpond's own. Interactive requests never wait for bulk ones; by default "
            "a single text that is not very long, or a query, is interactive."
        ),
    ] = None


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: Annotated[list[float] | str, Field(description="A string where base64 was asked.")]


class Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(description="Tokens the model read, special ones too.")]
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """OpenAI's answer."""

    object: Literal["list"]
    data: Annotated[list[Embedding], Field(description="In the order of the input.")]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="When the server loaded it, Unix seconds.")]
    owned_by: Literal["millpond"] = "millpond"
    root: Annotated[str, Field(description="The checkpoint behind the name.")]
    dimension: int
    max_model_len: int | None
    device: str
    dtype: str
    execution: Annotated[str, Field(description="`packed`, or how else it runs.")]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeRequest(_Request):
    prompt: Annotated[
        str,
        Field(
            max_length=MAX_TOKENIZED,
            description="One text; nothing of it is cut.",
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


class DetokenizeRequest(_Request):
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
