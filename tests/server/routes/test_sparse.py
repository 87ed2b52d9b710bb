"""What `/embed_sparse` takes, gives and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from serving import error_of, fake_app, request
from sparse_models import save_splade

from millpond import Engine
from millpond.server.app import create_app
from millpond.server.models import ServedModel
from millpond.server.settings import AppSettings

TEXTS = ["the stone grinds the grain", "mill", ""]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = save_splade(tmp_path_factory.mktemp("sparse"))
    with Engine(str(folder), dtype="float32", device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def app(engine: Engine) -> FastAPI:
    return create_app([ServedModel.of(engine, ["splade"])])


def post(app: FastAPI, path: str, /, **body: Any) -> Any:
    return request(app, "POST", path, json=body)


def assert_is(found: list[list[dict[str, Any]]], expected: Any) -> None:
    assert len(found) == len(expected)
    for terms, vector in zip(found, expected, strict=True):
        assert [term["index"] for term in terms] == vector.indices.tolist()
        values = np.array([term["value"] for term in terms], dtype=np.float32)
        np.testing.assert_array_equal(values, vector.values)


@pytest.mark.parametrize("task", ["query", "document", None])
def test_it_is_in_tei_s_shape(task: str | None, app: FastAPI, engine: Engine) -> None:
    answer = post(app, "/embed_sparse", inputs=TEXTS, input_type=task)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert_is(answer.json(), engine.embed_sparse(TEXTS, task=task))
    one = post(app, "/embed_sparse", inputs=TEXTS[0], input_type=task)
    assert one.json() == answer.json()[:1]


def test_options_and_token_ids(app: FastAPI, engine: Engine) -> None:
    found = post(app, "/embed_sparse", inputs=TEXTS, max_active_dims=3, min_weight=0.1).json()
    assert_is(found, engine.embed_sparse(TEXTS, max_active_dims=3, min_weight=0.1))
    ids = engine.tokenize(TEXTS)
    assert_is(post(app, "/embed_sparse", inputs=ids).json(), engine.embed_sparse(ids))
    assert error_of(post(app, "/embed_sparse", inputs=[[7, 8]]))["code"] == "invalid_token_ids"
    long = "mill " * 100
    answer = post(app, "/embed_sparse", inputs=[long], truncate=True, truncation_direction="Left")
    assert_is(answer.json(), engine.embed_sparse([long], truncate="start"))
    assert answer.headers["x-millpond-truncated-texts"] == "1"
    assert post(app, "/embed_sparse", inputs=[long], truncate=False).status_code == 400


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": []}, "inputs"),
        ({}, "inputs"),
        ({"inputs": ["a", 3]}, "inputs[1]"),
        ({"inputs": "a", "max_active_dims": 0}, "max_active_dims"),
        ({"inputs": "a", "min_weight": -1}, "min_weight"),
        ({"inputs": "a", "dimensions": 3}, "dimensions"),
        ({"inputs": "a", "prompt_name": "other"}, "prompt_name"),
    ],
)
def test_what_is_refused_is_named(body: dict[str, Any], field: str, app: FastAPI) -> None:
    answer = request(app, "POST", "/embed_sparse", json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == field


def test_other_models_and_routes_name_each_other(app: FastAPI) -> None:
    refused = error_of(post(app, "/v1/embeddings", input="a"))
    assert "/embed_sparse" in refused["message"]
    with fake_app() as dense:
        assert "/v1/embeddings" in error_of(post(dense, "/embed_sparse", inputs="a"))["message"]


def test_it_needs_the_key_and_is_counted_and_listed(engine: Engine) -> None:
    served = create_app([ServedModel.of(engine, ["splade"])], AppSettings(api_keys=["secret"]))
    assert post(served, "/embed_sparse", inputs="a").status_code == 401
    headers = {"authorization": "Bearer secret"}
    answer = request(served, "POST", "/embed_sparse", json={"inputs": "a"}, headers=headers)
    assert answer.status_code == 200
    (card,) = request(served, "GET", "/v1/models", headers=headers).json()["data"]
    assert card["kind"] == "sparse"
    assert "/embed_sparse" in request(served, "GET", "/metrics", headers=headers).text
    document = request(served, "GET", "/openapi.json", headers=headers).json()
    assert "/embed_sparse" in document["paths"]
