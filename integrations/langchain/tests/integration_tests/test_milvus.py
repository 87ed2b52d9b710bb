"""`MillpondMilvusSparseEmbeddings` gives Milvus an engine's sparse vectors."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from sparse_models import save_routed, save_splade

from millpond import Engine, InvalidText, UnsupportedCall

sparse = pytest.importorskip("langchain_milvus.utils.sparse", reason="it is in the test extra")
TEXTS = ["the stone grinds the grain", "a mill stands beside a pond", "rain is expected"]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_splade(tmp_path_factory.mktemp("splade")))


@pytest.fixture(scope="module")
def embeddings(model: str) -> Any:
    from langchain_millpond import MillpondMilvusSparseEmbeddings

    return MillpondMilvusSparseEmbeddings(model=model, device="cpu", dtype="float32")


def test_it_is_what_the_engine_gives(embeddings: Any, model: str) -> None:
    assert isinstance(embeddings, sparse.BaseSparseEmbedding)
    with Engine(model, device="cpu", dtype="float32") as engine:
        documents = engine.embed_sparse(TEXTS, task="document").to_dicts()
        (query,) = engine.embed_sparse(TEXTS[:1], task="query").to_dicts()
    assert embeddings.embed_documents(TEXTS) == documents
    assert embeddings.embed_query(TEXTS[0]) == query
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == documents
    assert asyncio.run(embeddings.aembed_query(TEXTS[0])) == query
    assert embeddings.embed_documents([]) == []
    assert pickle.loads(pickle.dumps(embeddings)).embed_documents(TEXTS) == documents


def test_queries_take_their_route_and_options(tmp_path: Path) -> None:
    from langchain_millpond import MillpondMilvusSparseEmbeddings

    model = save_routed(tmp_path)
    short = MillpondMilvusSparseEmbeddings(
        model=model, device="cpu", dtype="float32", max_active_dims=3, query_max_active_dims=2
    )
    assert [*map(len, short.embed_documents(TEXTS))] == [3, 3, 3]
    assert len(short.embed_query(TEXTS[0])) == 2


def test_what_cannot_be_meant_is_refused(embeddings: Any) -> None:
    from langchain_millpond import MillpondMilvusSparseEmbeddings

    with pytest.raises(InvalidText):
        embeddings.embed_documents("one text")
    with pytest.raises(UnsupportedCall, match="call embed"):
        MillpondMilvusSparseEmbeddings(model=MINILM)


def test_a_store_in_a_file_retrieves_by_both(embeddings: Any, tmp_path: Path) -> None:
    from langchain_milvus import Milvus
    from pymilvus import Function, FunctionType

    from langchain_millpond import MillpondEmbeddings

    store = Milvus.from_texts(
        TEXTS,
        embedding=[MillpondEmbeddings(model=MINILM), embeddings],
        vector_field=["dense", "sparse"],
        # Milvus Lite drops no terms, which langchain-milvus asks for by default.
        index_params=[
            {"index_type": "FLAT", "metric_type": "COSINE"},
            {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"},
        ],
        search_params=[{"metric_type": "COSINE"}, {"metric_type": "IP"}],
        connection_args={"uri": str(tmp_path / "mill.db")},
        collection_name="mill",
    )
    both = Function(
        name="both",
        input_field_names=[],
        function_type=FunctionType.RERANK,
        params={"reranker": "weighted", "weights": [0.9, 0.1]},
    )
    (found,) = store.similarity_search("where does the mill stand?", k=1, reranker=both)
    assert found.page_content == TEXTS[1]
    store.client.close()
