"""What other servers' clients send is taken where its meaning is clear, and refused where it is
not done here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from serving import embed, error_of, fake_app, request

from millpond.server.schemas import foreign_fields
from millpond.server.schemas.embeddings import EmbeddingRequest
from millpond.server.schemas.foreign_fields import DEFAULT_ONLY, IGNORED, RENAMED, translate
from millpond.server.settings import AppSettings

PAGE = Path(__file__).parents[3] / "docs" / "server.md"


@pytest.fixture
def app() -> Iterator[FastAPI]:
    with fake_app() as app:
        yield app


def understood(fields: dict[str, Any]) -> dict[str, Any]:
    """What of a body is not as by default, once it is understood."""
    body = EmbeddingRequest.model_validate(translate({"input": "a", **fields}).body)
    plain = EmbeddingRequest(input="a")
    return {
        name: value for name, value in body.model_dump().items() if value != getattr(plain, name)
    }


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({"input_type": "passage"}, {"input_type": "document"}),
        ({"input_type": "QUERY"}, {"input_type": "query"}),
        ({"input_type": "search_query"}, {"input_type": "query"}),
        ({"input_type": "search_document"}, {"input_type": "document"}),
        ({"input_type": "text"}, {}),
        ({"task": "retrieval.query"}, {"input_type": "query"}),
        ({"task": "retrieval.passage"}, {"input_type": "document"}),
        ({"task_type": "RETRIEVAL_DOCUMENT"}, {"input_type": "document"}),
        ({"truncate": True}, {}),
        ({"truncate": False}, {"truncate": "error"}),
        ({"truncate": "NONE"}, {"truncate": "error"}),
        ({"truncate": "START"}, {"truncate": "start"}),
        ({"truncation": False}, {"truncate": "error"}),
        ({"truncation": True, "truncate": None}, {}),
        ({"truncation_side": "left"}, {"truncate": "start"}),
        ({"truncation_direction": "Right"}, {"truncate": "end"}),
        ({"truncate_prompt_tokens": -1}, {}),
        ({"truncate_prompt_tokens": None}, {}),
        ({"output_dimension": 4}, {"dimensions": 4}),
        ({"output_dimensionality": 4, "dimensions": None}, {"dimensions": 4}),
        ({"normalized": True}, {"normalize": True}),
        ({"priority": 0}, {}),
        ({"embed_dtype": "float32", "endianness": "native", "add_special_tokens": True}, {}),
        ({"output_dtype": "float", "embedding_type": "float", "late_chunking": False}, {}),
        ({"modality": "text", "task": None}, {}),
        ({name: {"any": "thing"} for name in IGNORED}, {}),
    ],
)
def test_a_field_with_a_clear_meaning_is_taken(
    app: FastAPI, fields: dict[str, Any], ours: dict[str, Any]
) -> None:
    assert understood(fields) == ours
    assert embed(app, {"input": "a", **fields}).json() == embed(app, {"input": "a", **ours}).json()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"truncate_prompt_tokens": 100}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"add_special_tokens": False}, "add_special_tokens"),
        ({"add_special_tokens": 1}, "add_special_tokens"),
        ({"embed_dtype": "float16"}, "embed_dtype"),
        ({"endianness": "big"}, "endianness"),
        ({"output_dtype": "int8"}, "output_dtype"),
        ({"late_chunking": True}, "late_chunking"),
        ({"modality": ["text"]}, "modality"),
        ({"task": "text-matching"}, "task"),
        ({"task_type": 5}, "task_type"),
        ({"input_type": "classification"}, "input_type"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"output_dimension": 0}, "output_dimension"),
        ({"normalized": "yes"}, "normalized"),
        ({"priority": 3}, "priority"),
        ({"priority": False}, "priority"),
        ({"dimensions": 4, "output_dimension": 4}, "output_dimension"),
        ({"truncation": True, "truncation_side": "left"}, "truncation_side"),
    ],
)
@pytest.mark.parametrize("ignore", [False, True])
def test_what_is_not_done_here_is_refused_by_the_name_that_was_sent(
    fields: dict[str, Any], param: str, ignore: bool
) -> None:
    with fake_app(settings=AppSettings(ignore_unknown_fields=ignore)) as app:
        answer = embed(app, {"input": "a", **fields})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert param in error_of(answer)["message"]


def test_unknown_fields_are_ignored_where_the_operator_says_so(app: FastAPI) -> None:
    body = {"input": "a", "litellm_call_id": "1", "extra": {"deep": [1]}}
    tokens = {"prompt": "a", "add_generation_prompt": True}
    assert embed(app, body).status_code == 400
    assert request(app, "POST", "/tokenize", json=tokens).status_code == 400
    with fake_app(settings=AppSettings(ignore_unknown_fields=True)) as lenient:
        assert embed(lenient, body).status_code == 200
        assert request(lenient, "POST", "/tokenize", json=tokens).status_code == 200
        assert embed(lenient, {"inputs": "a"}).status_code == 400  # nothing is left of it


def test_the_other_names_of_an_input_type_go_for_tokenize_too(app: FastAPI) -> None:
    body = {"prompt": "a", "input_type": "passage"}
    assert request(app, "POST", "/tokenize", json=body).status_code == 200


def test_every_foreign_field_is_described() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8")))
    assert {*RENAMED, *DEFAULT_ONLY, *IGNORED} <= named
    assert not {*RENAMED, *DEFAULT_ONLY, *IGNORED} & {*EmbeddingRequest.model_fields}
    assert set(RENAMED.values()) <= {*EmbeddingRequest.model_fields}
    assert set(foreign_fields._INPUT_TYPES.values()) == {"query", "document", None}
