"""The bodies of the routes that score and classify, in the shapes of other servers.

`/rerank` takes Cohere's and Jina's (`documents`) and Text Embeddings Inference's (`texts`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from . import foreign_fields
from .embeddings import (
    MAX_INPUTS,
    Count,
    Direction,
    OptionalModel,
    Priority,
    PromptName,
    RequestBody,
    Texts,
    Usage,
)

__all__ = [
    "ClassifyRequest",
    "ClassifyResponse",
    "PredictRequest",
    "PredictResponse",
    "RerankRequest",
    "RerankResponse",
    "RerankTextsRequest",
    "ScoreRequest",
    "ScoreResponse",
    "TextScore",
]


class DocumentText(BaseModel):
    text: str


def _text_of(document: Any) -> Any:
    """Of an object with a text the text; anything else unchanged."""
    if not isinstance(document, dict):
        return document
    if document.keys() != {"text"}:
        raise PydanticCustomError("document", "an object holds a text, and nothing else")
    return document["text"]


Document = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | DocumentText)]
Documents = Annotated[list[Document], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
TextOrTexts = Annotated[
    Annotated[str, Tag("text")] | Annotated[Texts, Tag("texts")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "texts"),
]
RawScores = Annotated[
    bool | None,
    Field(
        description="`true` gives logits and `false` probabilities; by default what the "
        "checkpoint says, which is mostly a probability."
    ),
]
TopN = Annotated[Count | None, Field(description="The best N alone.")]
TeiRawScores = Annotated[bool, Field(description="Logits instead of probabilities.")]


class ScoringBody(RequestBody):
    """What all of these routes take."""

    FOREIGN = foreign_fields.OF_SCORES

    model: OptionalModel = None
    truncate: Annotated[
        Literal["end", "start", "document", "error"] | None,
        BeforeValidator(foreign_fields.truncate),
        Field(
            description="Where a pair or text that is too long is truncated, or `error`; "
            "`document` leaves the query whole. By default the longer of the two is cut, where "
            "the tokenizer says. Text Embeddings Inference's `false` is `error`."
        ),
    ] = None
    prompt: Annotated[
        str | None,
        Field(
            description="Millpond's own. In front of the query, or the instruction where the "
            "checkpoint has a chat template."
        ),
    ] = None
    prompt_name: PromptName = None
    priority: Annotated[
        Priority,
        Field(
            description="Millpond's own. Interactive requests do not wait for bulk ones. By "
            "default up to 128 pairs that are not very long are interactive."
        ),
    ] = None


class TruncatedAsInTei(ScoringBody):
    """With the field by which Text Embeddings Inference names the side."""

    truncation_direction: Direction = None


class RerankRequest(ScoringBody):
    """Cohere's, Jina's, vLLM's and infinity's request."""

    LARGE_FIELDS = ("documents",)

    query: str
    documents: Annotated[
        Documents,
        Field(
            description="Texts, or objects with a `text`.",
            examples=[["The bakery opens at six.", {"text": "Rain is expected."}]],
        ),
    ]
    top_n: TopN = None
    return_documents: Annotated[bool | None, Field(description="The texts beside scores.")] = False
    max_tokens_per_doc: Annotated[
        Count | None, Field(description="Read no more tokens of a document.")
    ] = None
    raw_scores: RawScores = None


class RerankTextsRequest(TruncatedAsInTei):
    """Text Embeddings Inference's request."""

    LARGE_FIELDS = ("texts",)

    query: str
    texts: Texts
    raw_scores: TeiRawScores = False
    return_text: Annotated[bool, Field(description="The texts beside their scores.")] = False
    top_n: TopN = None  # LiteLLM sends it; TEI itself gives all


class ScoreRequest(ScoringBody):
    """vLLM's request; `text_1` and `text_2` are taken as well."""

    LARGE_FIELDS = ("documents", "queries")
    FOREIGN = foreign_fields.OF_TWO_SIDES

    queries: Annotated[
        TextOrTexts, Field(description="One for all documents, or as many as there are documents.")
    ]
    documents: TextOrTexts
    raw_scores: RawScores = None


class ClassifyRequest(ScoringBody):
    """vLLM's request, or infinity's, which has `raw_scores`."""

    LARGE_FIELDS = ("input",)

    input: TextOrTexts
    raw_scores: Annotated[
        bool | None,
        Field(
            description="Where it is given, the answer has infinity's shape: a list of classes "
            "for each text. `true` gives logits instead of probabilities."
        ),
    ] = None


TextOrPair = Annotated[list[str], Field(min_length=1, max_length=2, fail_fast=True)]
TextsOrPairs = Annotated[
    list[TextOrPair], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)
]


def _inputs_kind(value: Any) -> Literal["text", "sequence", "sequences"]:
    if isinstance(value, str):
        return "text"
    is_one = isinstance(value, list) and value and isinstance(value[0], str)
    return "sequence" if is_one else "sequences"


Inputs = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[TextOrPair, Tag("sequence")]
    | Annotated[TextsOrPairs, Tag("sequences")],
    Discriminator(_inputs_kind),
]


class PredictRequest(TruncatedAsInTei):
    """Text Embeddings Inference's request."""

    LARGE_FIELDS = ("inputs",)

    inputs: Annotated[
        Inputs,
        Field(
            description="One text, or one pair as a list of two; or a list of lists of one text "
            "or two.",
            examples=[[["I like it."], ["I do not."]]],
        ),
    ]
    raw_scores: TeiRawScores = False


class RerankResult(BaseModel):
    index: Annotated[int, Field(description="Place of the document in the request.")]
    relevance_score: float
    document: Annotated[
        DocumentText | None, Field(description="Where `return_documents` asks for it.")
    ] = None


class ApiVersion(BaseModel):
    version: str


class RerankTokens(BaseModel):
    input_tokens: int


class RerankMeta(BaseModel):
    api_version: ApiVersion
    tokens: RerankTokens


class RerankResponse(BaseModel):
    """Cohere's and Jina's response."""

    id: str
    object: Literal["rerank"]
    model: str
    results: Annotated[list[RerankResult], Field(description="The best first.")]
    usage: Usage
    meta: Annotated[RerankMeta, Field(description="The same as in `usage`, for Cohere's clients.")]


class TextScore(BaseModel):
    """Text Embeddings Inference's response is a list of these, the best first."""

    index: Annotated[int, Field(description="Place of the text in the request.")]
    score: float
    text: Annotated[str | None, Field(description="Where `return_text` asks for it.")] = None


class PairScore(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreResponse(BaseModel):
    """vLLM's response."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: Annotated[list[PairScore], Field(description="In the order of the documents.")]
    usage: Usage


class ClassScore(BaseModel):
    label: str
    score: float


class TextClasses(BaseModel):
    index: int
    label: Annotated[str, Field(description="The most probable.")]
    probs: Annotated[list[float], Field(description="In the order of the checkpoint's labels.")]
    num_classes: int


class ClassifyResponse(BaseModel):
    """vLLM's response, or infinity's."""

    id: str
    object: Literal["list", "classify"]
    created: int
    model: str
    data: list[TextClasses] | list[list[ClassScore]]
    usage: Usage


PredictResponse = list[ClassScore] | list[list[ClassScore]]
"""Text Embeddings Inference's: the classes of one text or pair, or of each."""
