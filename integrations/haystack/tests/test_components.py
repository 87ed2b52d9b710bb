"""Haystack's components, in pipelines over Haystack's own store."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from checkpoints import save_family
from command_line import with_settings
from families import FAMILIES
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from rerankers import save_reranker

from haystack_integrations.components.embedders.millpond import (
    MillpondDocumentEmbedder,
    MillpondTextEmbedder,
)
from haystack_integrations.components.rankers.millpond import MillpondRanker
from millpond import Engine, InvalidOption, TextTooLong

OPTIONS: Any = {"device": "cpu", "dtype": "float32"}
TEXTS = ["the stone grinds the grain", "rain on the pond", "bread at six"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    family = next(family for family in FAMILIES if family.name == "bert")
    folder = tmp_path_factory.mktemp("prompted")
    prompts = {"query": "find: ", "document": "about: "}
    return str(with_settings(save_family(family, folder), folder / "bert", prompts=prompts))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_reranker("bert", tmp_path_factory.mktemp("reranker")))


def test_a_pipeline_indexes_retrieves_and_ranks_also_once_saved(model: str, reranker: str) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    index = Pipeline()
    index.add_component("embedder", MillpondDocumentEmbedder(model, engine_options=OPTIONS))
    index.add_component("writer", DocumentWriter(store))
    index.connect("embedder.documents", "writer.documents")
    index = Pipeline.loads(index.dumps())
    index.remove_component("writer")  # whose store is another now
    index.add_component("writer", DocumentWriter(store))
    index.connect("embedder.documents", "writer.documents")
    index.run({"embedder": {"documents": [Document(content=text) for text in TEXTS]}})

    with Engine(model, **OPTIONS) as engine:
        documents = engine.embed(TEXTS, task="document")
        query = engine.embed("stone", task="query")
    saved = {document.content: document.embedding for document in store.filter_documents()}
    assert np.array_equal(np.float32([saved[text] for text in TEXTS]), documents)

    search = Pipeline()
    search.add_component("embedder", MillpondTextEmbedder(model, engine_options=OPTIONS))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    search.add_component("ranker", MillpondRanker(reranker, top_k=1, engine_options=OPTIONS))
    search.connect("embedder.embedding", "retriever.query_embedding")
    search.connect("retriever.documents", "ranker.documents")
    asked = {"embedder": {"text": "stone"}, "ranker": {"query": "stone"}}
    found = search.run(asked, include_outputs_from={"retriever"})
    scores = documents @ query / np.linalg.norm(documents, axis=1)
    retrieved = [TEXTS[place] for place in np.argsort(-scores)[:2]]
    assert [one.content for one in found["retriever"]["documents"]] == retrieved
    with Engine(reranker, **OPTIONS) as engine:
        (best,) = engine.rank("stone", retrieved, top_n=1)
    (ranked,) = found["ranker"]["documents"]
    assert (ranked.content, ranked.score) == (retrieved[best.index], best.score)


@pytest.mark.parametrize(
    "component",
    [
        MillpondTextEmbedder("a/b", prompt="x: ", dimensions=8, engine_options=OPTIONS),
        MillpondDocumentEmbedder("a/b", meta_fields_to_embed=["title"], embedding_separator=" "),
        MillpondRanker("a/b", top_k=3, score_threshold=0.5, activation="none"),
    ],
    ids=lambda component: type(component).__name__,
)
def test_a_component_is_saved_by_its_arguments(component: Any) -> None:
    saved = component.to_dict()
    assert saved["type"] == f"{type(component).__module__}.{type(component).__name__}"
    assert type(component).from_dict(saved).to_dict() == saved


def test_coroutines_get_the_same(model: str, reranker: str) -> None:
    documents = [Document(content=text) for text in TEXTS]
    text = MillpondTextEmbedder(model, engine_options=OPTIONS)
    several = MillpondDocumentEmbedder(model, engine_options=OPTIONS)
    ranker = MillpondRanker(reranker, engine_options=OPTIONS)

    async def run() -> list[Any]:
        return await asyncio.gather(
            text.run_async("stone"),
            several.run_async(documents),
            ranker.run_async("stone", documents),
        )

    found = asyncio.run(run())
    assert found == [text.run("stone"), several.run(documents), ranker.run("stone", documents)]


def test_fields_stand_before_the_content(model: str) -> None:
    embedder = MillpondDocumentEmbedder(
        model, meta_fields_to_embed=["title", "page"], prompt="", engine_options=OPTIONS
    )
    document = Document(content="text", meta={"title": "Mills", "page": None})
    (embedded,) = embedder.run([document, *()])["documents"]
    with Engine(model, **OPTIONS) as engine:
        assert np.array_equal(np.float32(embedded.embedding), engine.embed("Mills\ntext"))
    assert document.embedding is None  # a copy has the vector
    assert embedded.id == document.id
    assert embedder.run([])["documents"] == []


def test_a_ranker_keeps_what_it_is_told(reranker: str) -> None:
    ranker = MillpondRanker(reranker, engine_options=OPTIONS)
    documents = [Document(content=text) for text in TEXTS]
    all_of_them = ranker.run("stone", documents)["documents"]
    assert len(all_of_them) == 3
    assert ranker.run("stone", documents, top_k=1)["documents"] == all_of_them[:1]
    least = all_of_them[1].score
    assert ranker.run("stone", documents, score_threshold=least)["documents"] == all_of_them[:2]
    assert ranker.run("stone", [])["documents"] == []


def test_what_cannot_be_meant_is_refused(model: str) -> None:
    with pytest.raises(InvalidOption, match="unknown option dtyp"):
        MillpondTextEmbedder(model, engine_options={"dtyp": "float32"})
    with pytest.raises(TypeError, match="documents go to a document embedder"):
        MillpondTextEmbedder(model).run([Document(content="x")])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a text goes to a text embedder"):
        MillpondDocumentEmbedder(model).run("text")  # type: ignore[arg-type]
    strict = MillpondTextEmbedder(model, truncate="error", engine_options=OPTIONS)
    with pytest.raises(TextTooLong):
        strict.run("too long " * 400)
    strict.close()
    strict.close()
