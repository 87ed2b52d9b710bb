"""LanceDB's registry, with LanceDB's own store on a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from command_line import with_settings
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

from millpond import Engine, TextTooLong
from millpond.integrations.lancedb import MillpondEmbeddings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

OPTIONS: Any = {"device": "cpu", "dtype": "float32"}
TEXTS = ["the stone grinds the grain", "rain on the pond", "bread at six"]


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    copy = tmp_path_factory.mktemp("prompted") / "bert"
    prompts = {"query": "find: ", "document": "about: "}
    return str(with_settings(checkpoint("bert"), copy, prompts=prompts))


def test_a_table_embeds_what_it_is_given_and_asked(model: str, tmp_path: Path) -> None:
    function = get_registry().get("millpond").create(name=model, options=OPTIONS)

    class Note(LanceModel):  # type: ignore[misc]
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("notes", schema=Note)
    table.add([{"text": text} for text in TEXTS[:2]])
    again = lancedb.connect(tmp_path).open_table("notes")  # which has the function's arguments
    again.add([{"text": TEXTS[2]}])
    with Engine(model, **OPTIONS) as engine:
        documents = engine.embed(TEXTS, task="document")
        query = engine.embed("stone", task="query")
    rows = again.to_arrow().to_pylist()
    assert np.array_equal(np.float32([row["vector"] for row in rows]), documents)
    found = [row["text"] for row in again.search("stone").limit(3).to_list()]
    nearest = np.argsort(((documents - query) ** 2).sum(axis=1))
    assert found == [TEXTS[index] for index in nearest]


def test_a_row_without_a_text_has_no_vector(model: str) -> None:
    function = MillpondEmbeddings.create(name=model, options=OPTIONS, dimensions=8)
    assert function.ndims() == 8
    vectors = function.generate_embeddings(["one", None, "two"])
    assert vectors[1] is None
    assert [len(vectors[row]) for row in (0, 2)] == [8, 8]
    assert function.compute_source_embeddings([]) == []


def test_what_is_refused_is_refused_at_once(model: str) -> None:
    function = MillpondEmbeddings.create(name=model, options=OPTIONS, truncate="error")
    with pytest.raises(TextTooLong):  # without LanceDB's seven tries
        function.compute_source_embeddings_with_retry(["too long " * 400])


def test_equal_arguments_are_equal(model: str) -> None:
    one, other = (MillpondEmbeddings.create(name=model, options=OPTIONS) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != MillpondEmbeddings.create(name=model)
