"""`MillpondSparseEmbedding` gives LlamaIndex and its Qdrant store an engine's sparse vectors."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import pytest
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.embeddings.millpond import MillpondEmbedding, MillpondSparseEmbedding
from sparse_models import save_splade

from millpond import Engine, InvalidOption, InvalidText, UnsupportedCall

TEXTS = ["the stone grinds the grain", "a mill stands beside a pond", "rain is expected"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_splade(tmp_path_factory.mktemp("splade")))


@pytest.fixture(scope="module")
def embedding(model: str) -> MillpondSparseEmbedding:
    return MillpondSparseEmbedding(model, device="cpu", dtype="float32")


def test_it_is_what_the_engine_gives(embedding: MillpondSparseEmbedding, model: str) -> None:
    assert isinstance(embedding, BaseSparseEmbedding)
    with Engine(model, device="cpu", dtype="float32") as engine:
        documents = engine.embed_sparse(TEXTS, task="document").to_dicts()
        query = engine.embed_sparse(TEXTS[0], task="query").to_dict()
    assert embedding.get_text_embedding_batch(TEXTS) == documents
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == documents
    assert embedding.get_text_embedding(TEXTS[1]) == documents[1]
    assert embedding.get_query_embedding(TEXTS[0]) == query
    assert asyncio.run(embedding.aget_query_embedding(TEXTS[0])) == query
    indices, values = embedding.sparse_doc_fn(TEXTS)
    pairs = zip(indices, values, strict=True)
    assert [dict(zip(*each, strict=True)) for each in pairs] == documents
    assert embedding.sparse_query_fn(TEXTS[:1])[0] == [list(query)]
    copied = pickle.loads(pickle.dumps(embedding))
    assert copied.get_text_embedding_batch(TEXTS) == documents


def test_what_cannot_be_meant_is_refused(embedding: MillpondSparseEmbedding, model: str) -> None:
    with pytest.raises(InvalidText):
        embedding.sparse_doc_fn([3])  # type: ignore[list-item]
    with pytest.raises(InvalidOption, match="min_weight"):
        MillpondSparseEmbedding(model, min_weight=-1)
    with pytest.raises(UnsupportedCall, match="call embed"):
        MillpondSparseEmbedding("sentence-transformers/all-MiniLM-L6-v2")


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
def test_a_qdrant_store_on_disk_retrieves_by_both(
    embedding: MillpondSparseEmbedding, tmp_path: Path
) -> None:
    stores = pytest.importorskip(
        "llama_index.vector_stores.qdrant", reason="it is installed by the test extra"
    )
    clients = pytest.importorskip("qdrant_client")
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode

    client = clients.QdrantClient(path=str(tmp_path))
    store = stores.QdrantVectorStore(
        "mill",
        client=client,
        enable_hybrid=True,
        sparse_doc_fn=embedding.sparse_doc_fn,
        sparse_query_fn=embedding.sparse_query_fn,
    )
    index = VectorStoreIndex(
        [TextNode(text=text) for text in TEXTS],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=MillpondEmbedding("sentence-transformers/all-MiniLM-L6-v2"),
    )
    retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=1)
    assert retriever.retrieve("where does the mill stand?")[0].node.text == TEXTS[1]
    client.close()
