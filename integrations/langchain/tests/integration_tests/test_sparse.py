"""`MillpondSparseEmbeddings` gives Qdrant an engine's sparse vectors."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from sparse_models import save_routed, save_splade

from millpond import Engine, InvalidOption, InvalidText, UnsupportedCall

qdrant = pytest.importorskip("langchain_qdrant", reason="it is installed by the test extra")
TEXTS = ["the stone grinds the grain", "a mill stands beside a pond", "rain is expected"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_splade(tmp_path_factory.mktemp("splade")))


@pytest.fixture(scope="module")
def embeddings(model: str) -> Any:
    from langchain_millpond import MillpondSparseEmbeddings

    return MillpondSparseEmbeddings(model=model, device="cpu", dtype="float32")


def test_it_is_what_the_engine_gives(embeddings: Any, model: str) -> None:
    assert isinstance(embeddings, qdrant.SparseEmbeddings)
    with Engine(model, device="cpu", dtype="float32") as engine:
        documents = engine.embed_sparse(TEXTS, task="document")
        query = engine.embed_sparse(TEXTS[0], task="query")
    found = embeddings.embed_documents(TEXTS)
    assert [dict(zip(v.indices, v.values, strict=True)) for v in found] == documents.to_dicts()
    assert embeddings.embed_query(TEXTS[0]).indices == query.indices.tolist()
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == found
    assert asyncio.run(embeddings.aembed_query(TEXTS[0])) == embeddings.embed_query(TEXTS[0])
    assert embeddings.embed_documents([]) == []
    assert pickle.loads(pickle.dumps(embeddings)).embed_documents(TEXTS) == found


def test_queries_take_their_route_and_options(tmp_path: Path) -> None:
    from langchain_millpond import MillpondSparseEmbeddings

    model = save_routed(tmp_path)
    short = MillpondSparseEmbeddings(
        model=model, device="cpu", dtype="float32", max_active_dims=3, query_max_active_dims=2
    )
    assert [len(vector.indices) for vector in short.embed_documents(TEXTS)] == [3, 3, 3]
    with Engine(model, device="cpu", dtype="float32") as engine:
        expected = engine.embed_sparse(TEXTS[0], task="query", max_active_dims=2)
    assert short.embed_query(TEXTS[0]).values == expected.values.tolist()


def test_what_cannot_be_meant_is_refused(embeddings: Any, model: str) -> None:
    from langchain_millpond import MillpondSparseEmbeddings

    with pytest.raises(InvalidText):
        embeddings.embed_documents("one text")
    with pytest.raises(InvalidOption, match="max_active_dims"):
        MillpondSparseEmbeddings(model=model, max_active_dims=0)
    with pytest.raises(UnsupportedCall, match="call embed"):
        MillpondSparseEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2")


def test_a_store_on_disk_retrieves_by_both(embeddings: Any, tmp_path: Path) -> None:
    from langchain_millpond import MillpondEmbeddings

    store = qdrant.QdrantVectorStore.from_texts(
        TEXTS,
        embedding=MillpondEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2"),
        sparse_embedding=embeddings,
        retrieval_mode=qdrant.RetrievalMode.HYBRID,
        collection_name="mill",
        path=str(tmp_path),
    )
    (found,) = store.similarity_search("where does the mill stand?", k=1)
    assert found.page_content == TEXTS[1]
    store.client.close()
