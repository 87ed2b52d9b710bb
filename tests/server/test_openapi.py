"""What the OpenAPI document says is what the server does, whatever is sent to it.

schemathesis makes requests out of the document, right ones and wrong ones. No answer may be a 5xx,
and none may have a status, a type or a shape that the document does not declare.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import schemathesis
from checkpoints import save_transformer
from families import ENCODER
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sparse_models import save_splade

from millpond import Engine
from millpond.server.app import create_app
from millpond.server.models import ServedModel
from multi_vector import save_multi_vector

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def document(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = save_transformer(
        tmp_path_factory.mktemp("reranker"),
        model="BertForSequenceClassification",
        config={**ENCODER, "num_labels": 1},
    )
    late = save_multi_vector(tmp_path_factory.mktemp("late"))
    sparse = save_splade(tmp_path_factory.mktemp("sparse"))
    with ExitStack() as opened:
        folders = {"model": MODEL, "reranker": folder, "late": late, "splade": sparse}
        names = {name: opened.enter_context(Engine(str(of))) for name, of in folders.items()}
        app = create_app([ServedModel.of(each, [name]) for name, each in names.items()])
        # schemathesis starts and stops the application with every request.
        app.router.lifespan_context = lambda app: nullcontext()
        yield schemathesis.openapi.from_asgi("/openapi.json", app)
        app.state.body_parser.close()


OPERATIONS = [
    ("POST", "/v1/embeddings", 250),
    ("POST", "/embed", 150),
    ("POST", "/similarity", 100),
    ("POST", "/", 100),
    ("POST", "/decode", 50),
    ("POST", "/v1/embed", 50),
    ("POST", "/v2/embed", 150),
    ("GET", "/info", 25),
    ("GET", "/v1/models", 5),
    ("GET", "/v1/models/{model_id}", 50),
    ("POST", "/rerank", 250),
    ("POST", "/v1/rerank", 25),
    ("POST", "/v2/rerank", 25),
    ("POST", "/score", 100),
    ("POST", "/classify", 100),
    ("POST", "/predict", 100),
    ("POST", "/embed_all", 100),
    ("POST", "/embed_sparse", 100),
    ("POST", "/pooling", 100),
    ("POST", "/tokenize", 100),
    ("POST", "/detokenize", 100),
    ("GET", "/health", 5),
    ("GET", "/metrics", 5),
    ("GET", "/version", 5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "examples"), OPERATIONS)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_5xx_and_nothing_undeclared(
    document: Any, method: str, path: str, examples: int, mode: GenerationMode
) -> None:
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    try:
        check()
    except Unsatisfiable:  # nothing about this operation can be wrong
        assert mode is GenerationMode.NEGATIVE
        assert method == "GET"


def test_every_operation_is_tried(document: Any) -> None:
    declared = {
        (method.upper(), path)
        for path, methods in document.raw_schema["paths"].items()
        for method in methods
    }
    assert declared == {(method, path) for method, path, _ in OPERATIONS}
