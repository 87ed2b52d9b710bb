"""Chroma's embedding function, with Chroma's own store on a disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.utils.embedding_functions import known_embedding_functions
from command_line import with_settings

from millpond import Engine, InvalidOption
from millpond.integrations.chroma import MillpondEmbeddingFunction

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

OPTIONS: Any = {"device": "cpu", "dtype": "float32"}
TEXTS = ["the stone grinds the grain", "rain on the pond", "bread at six"]


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    copy = tmp_path_factory.mktemp("prompted") / "bert"
    settings = {
        "prompts": {"query": "find: ", "document": "about: "},
        "similarity_fn_name": "dot",
    }
    return str(with_settings(checkpoint("bert"), copy, **settings))


def test_a_collection_finds_its_function_again(model: str, tmp_path: Path) -> None:
    function = MillpondEmbeddingFunction(model, **OPTIONS)
    client = chromadb.PersistentClient(str(tmp_path))
    collection = client.create_collection("notes", embedding_function=function)
    collection.add(ids=["a", "b", "c"], documents=TEXTS)
    with Engine(model, **OPTIONS) as engine:
        documents = engine.embed(TEXTS, task="document")
        query = engine.embed("stone", task="query")
    saved = collection.get(ids=["a", "b", "c"], include=["embeddings"])
    assert np.array_equal(np.float32(saved["embeddings"]), documents)

    again = chromadb.PersistentClient(str(tmp_path)).get_collection("notes")
    found = again.query(query_texts=["stone"], n_results=3)
    best = np.argsort(-(documents @ query))  # a model that was trained for dot products
    assert found["ids"] == [[["a", "b", "c"][index] for index in best]]
    assert again.configuration["hnsw"]["space"] == "ip"


def test_its_configuration_is_json_and_makes_an_equal_one(model: str) -> None:
    function = MillpondEmbeddingFunction(model, dimensions=8, truncate="end", **OPTIONS)
    config = json.loads(json.dumps(function.get_config()))
    assert config == {"model": model, "options": OPTIONS, "dimensions": 8, "truncate": "end"}
    again = known_embedding_functions["millpond"].build_from_config(config)
    assert np.array_equal(again(TEXTS), function(TEXTS))
    assert len(again(TEXTS)[0]) == 8
    assert again.embed_query(TEXTS)[0].dtype == np.float32
    assert not function.is_legacy()


def test_what_cannot_be_meant_is_refused(model: str) -> None:
    with pytest.raises(InvalidOption, match="unknown option dtyp"):
        MillpondEmbeddingFunction(model, dtyp="float32")  # type: ignore[call-arg]
    with pytest.raises(InvalidOption, match="names no model"):
        MillpondEmbeddingFunction.validate_config({})
    function = MillpondEmbeddingFunction(model, **OPTIONS)
    old = function.get_config()
    function.validate_config_update(old, {**old, "model": "/moved"})
    with pytest.raises(InvalidOption, match="dimensions was None"):
        function.validate_config_update(old, {**old, "dimensions": 8})


def test_opening_a_collection_loads_no_model(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = chromadb.PersistentClient(str(tmp_path))
    client.create_collection("notes", embedding_function=MillpondEmbeddingFunction(model))
    monkeypatch.setattr(Engine, "shared", lambda *_, **__: pytest.fail("a model was loaded"))
    assert chromadb.PersistentClient(str(tmp_path)).get_collection("notes").count() == 0
