"""Fields of other servers' APIs, translated to ours.

A field with an equivalent is taken. A value that asks for something unsupported is refused rather
than ignored: the vectors or scores would not be what the client expects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ApiError

__all__ = [
    "DEFAULT_ONLY",
    "IGNORED",
    "OF_EMBEDDINGS",
    "OF_POOLING",
    "OF_SCORES",
    "OF_TEI",
    "OF_TWO_SIDES",
    "RENAMED",
    "ForeignFields",
    "Translated",
    "input_type",
    "translate",
    "truncate",
]

RENAMED = {
    "normalized": "normalize",  # Jina
    "output_dimension": "dimensions",  # Voyage, Cohere, Mistral
    "output_dimensionality": "dimensions",  # Gemini
    "task": "input_type",  # Jina
    "task_type": "input_type",  # Gemini
    "truncation": "truncate",  # Voyage
    "truncation_direction": "truncate",  # TEI
    "truncation_side": "truncate",  # vLLM
}

# Only the value that is the behaviour anyway.
DEFAULT_ONLY: Mapping[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),  # vLLM
    "embed_dtype": ("float32",),  # vLLM
    "embedding_type": ("float",),  # Jina
    "endianness": ("native", "little"),  # vLLM
    "late_chunking": (False,),  # Jina
    "modality": ("text",),  # infinity
    "output_dtype": ("float", "float32"),  # Voyage, Mistral
    "truncate_prompt_tokens": (-1,),  # vLLM: as many as the model reads
}

# They do not affect the vectors.
IGNORED = frozenset({"cache_salt", "metadata", "request_id", "safety_identifier"})


@dataclass(frozen=True)
class ForeignFields:
    """What a request takes of other servers' fields."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    default_only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: Collection[str] = frozenset()


OF_EMBEDDINGS = ForeignFields(RENAMED, DEFAULT_ONLY, IGNORED)
OF_SCORES = ForeignFields(
    renamed={
        "truncation": "truncate",  # Voyage, Jina
        "truncation_side": "truncate",  # vLLM
    },
    default_only={
        "add_special_tokens": (True,),  # vLLM
        "max_chunks_per_doc": (1,),  # Cohere's first version
        "modality": ("text",),  # infinity
        "rank_fields": (["text"],),  # Cohere's first version
        "truncate_prompt_tokens": (-1,),  # vLLM
        "use_activation": (True,),  # vLLM
    },
    ignored=IGNORED | {"user"},
)
OF_TWO_SIDES = replace(  # vLLM
    OF_SCORES, renamed={**OF_SCORES.renamed, "text_1": "queries", "text_2": "documents"}
)
OF_TEI = ForeignFields(renamed={"truncation": "truncate"}, ignored=IGNORED | {"user"})
OF_POOLING = ForeignFields(  # vLLM
    renamed={
        "truncation_side": "truncate",
        "softmax": "use_activation",  # its older names
        "activation": "use_activation",
    },
    default_only={
        "add_special_tokens": (True,),
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
        "truncate_prompt_tokens": (-1,),
    },
    ignored=IGNORED | {"user"},
)
_INPUT_TYPES = {
    "passage": "document",  # NVIDIA, and models of E5's kind
    "search_query": "query",  # Cohere
    "search_document": "document",
    "retrieval.query": "query",  # Jina
    "retrieval.passage": "document",
    "retrieval_query": "query",  # Gemini
    "retrieval_document": "document",
    "text": None,  # Azure: no type
}
_TRUNCATE = {"left": "start", "right": "end", "none": "error"}


@dataclass(frozen=True)
class Translated:
    """A body with our field names, and the names the client used for them."""

    body: dict[str, Any]
    client_names: Mapping[str, str]


def translate(body: Mapping[str, Any], foreign: ForeignFields = OF_EMBEDDINGS) -> Translated:
    """Raises `ApiError` 400 for an unsupported value, or a field given twice."""
    ours: dict[str, Any] = {}
    client_names: dict[str, str] = {}
    for name, value in body.items():
        if name in foreign.default_only:
            _require_default(name, value, foreign.default_only[name])
        elif name in foreign.renamed:
            if value is None:
                continue
            meant = foreign.renamed[name]
            if meant in client_names or body.get(meant) is not None:
                other = client_names.get(meant, meant)
                message = f"{other} and {name} mean the same; send one"
                raise ApiError(400, message, param=name, code="invalid_value")
            client_names[meant] = name
            ours[meant] = value
        elif name not in foreign.ignored:
            ours.setdefault(name, value)
    return Translated(ours, client_names)


def _require_default(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
        choices = " or ".join(map(_as_json, allowed))
        hint = ""
        if name == "truncate_prompt_tokens":
            hint = ", which is as many as the model reads; --max-model-len sets fewer"
        raise ApiError.about(name, f"it can only be {choices}{hint}")


def _as_json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def input_type(value: Any) -> Any:
    """Other names of `query` and `document`; any other value unchanged."""
    if not isinstance(value, str):
        return value
    return _INPUT_TYPES.get(value.lower(), value.lower())


def truncate(value: Any) -> Any:
    """Other names of the sides, and of `error`; any other value unchanged."""
    if isinstance(value, bool):
        return None if value else "error"
    return _TRUNCATE.get(value.lower(), value.lower()) if isinstance(value, str) else value
