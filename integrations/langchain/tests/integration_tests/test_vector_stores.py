"""In LangChain's stores, cache, indexing API and chains, on the real model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_chroma import Chroma
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from langchain_millpond import MillpondEmbeddings
from millpond import BatchStats, Engine

FACTS = {
    "bakery": "The bakery in the village opens at six and sells out by nine.",
    "mill": "Flour is ground between two stones, one of which is turned by the wheel.",
    "weather": "Heavy rain is expected in the afternoon.",
}
QUESTIONS = {
    "When can I buy bread?": "bakery",
    "How is flour made?": "mill",
    "Will it be wet today?": "weather",
}


@pytest.fixture
def embeddings(model: str) -> MillpondEmbeddings:
    return MillpondEmbeddings(model=model)


@pytest.fixture
def batches(real_engine: Engine) -> Iterator[list[BatchStats]]:
    """The forward passes of the test."""
    ran: list[BatchStats] = []
    real_engine.add_stats_hook(ran.append)
    yield ran
    real_engine.remove_stats_hook(ran.append)


def documents() -> list[Document]:
    return [Document(text, metadata={"name": name}) for name, text in FACTS.items()]


def chroma(embeddings: MillpondEmbeddings, folder: Path) -> VectorStore:
    return Chroma("facts", embeddings, str(folder))


def faiss(embeddings: MillpondEmbeddings, folder: Path) -> VectorStore:
    store = FAISS.from_texts(["to be dropped"], embeddings, ids=["drop"])
    store.delete(["drop"])
    return store


def in_memory(embeddings: MillpondEmbeddings, folder: Path) -> VectorStore:
    return InMemoryVectorStore(embeddings)


STORES = [chroma, faiss, in_memory]
MakeStore = Callable[[MillpondEmbeddings, Path], VectorStore]


def names(hits: list[list[Document]]) -> list[str]:
    return [documents[0].metadata["name"] for documents in hits]


@pytest.mark.parametrize("make", STORES)
def test_a_store_finds_the_answers(
    make: MakeStore, embeddings: MillpondEmbeddings, tmp_path: Path
) -> None:
    store = make(embeddings, tmp_path)
    store.add_documents(documents())
    hits = [store.similarity_search(question, k=1) for question in QUESTIONS]
    assert names(hits) == list(QUESTIONS.values())


@pytest.mark.parametrize("make", STORES)
def test_a_store_finds_the_answers_asynchronously(
    make: MakeStore, embeddings: MillpondEmbeddings, tmp_path: Path
) -> None:
    async def ask() -> list[list[Document]]:
        store = make(embeddings, tmp_path)
        await store.aadd_documents(documents())
        return await asyncio.gather(*(store.asimilarity_search(q, k=1) for q in QUESTIONS))

    assert names(asyncio.run(ask())) == list(QUESTIONS.values())


def test_a_store_on_disk_is_read_again(embeddings: MillpondEmbeddings, tmp_path: Path) -> None:
    chroma(embeddings, tmp_path).add_documents(documents())
    again = chroma(embeddings, tmp_path)
    assert again.similarity_search("When can I buy bread?", k=1)[0].metadata["name"] == "bakery"


def test_texts_have_bulk_priority_and_questions_interactive(
    embeddings: MillpondEmbeddings, batches: list[BatchStats]
) -> None:
    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents())
    store.similarity_search("When can I buy bread?")
    assert sum(batch.bulk_texts for batch in batches) == len(FACTS)
    assert sum(batch.interactive_texts for batch in batches) == 1


def test_the_cache_embeds_a_text_once(
    embeddings: MillpondEmbeddings, batches: list[BatchStats]
) -> None:
    cached = CacheBackedEmbeddings.from_bytes_store(
        embeddings,
        InMemoryByteStore(),
        namespace=embeddings.model,
        query_embedding_cache=True,
        key_encoder="sha256",
    )
    texts = list(FACTS.values())
    first = cached.embed_documents(texts)
    assert cached.embed_documents(texts) == first == embeddings.embed_documents(texts)
    assert asyncio.run(cached.aembed_documents(texts)) == first
    assert cached.embed_query("bread") == cached.embed_query("bread")
    assert sum(batch.texts for batch in batches) == 2 * len(texts) + 1


def test_the_indexing_api_embeds_what_is_new(
    embeddings: MillpondEmbeddings, batches: list[BatchStats]
) -> None:
    store, records = InMemoryVectorStore(embeddings), InMemoryRecordManager("facts")
    records.create_schema()
    options: dict[str, Any] = {"cleanup": "full", "source_id_key": "name", "key_encoder": "sha256"}
    assert index(documents(), records, store, **options)["num_added"] == 3
    assert index(documents(), records, store, **options)["num_skipped"] == 3
    assert sum(batch.texts for batch in batches) == 3

    changed = [*documents()[:2], Document("Sunshine all day.", metadata={"name": "weather"})]
    done = asyncio.run(aindex(changed, records, store, **options))
    assert (done["num_added"], done["num_deleted"]) == (1, 1)
    assert sum(batch.texts for batch in batches) == 4


def retrieval_chain(embeddings: MillpondEmbeddings) -> Any:
    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents())
    first = RunnableLambda(lambda hits: hits[0].metadata["name"])
    retriever = store.as_retriever(search_kwargs={"k": 1})
    return {"question": RunnablePassthrough(), "answer": retriever | first}


def test_a_chain_answers_in_batches(embeddings: MillpondEmbeddings) -> None:
    chain = RunnablePassthrough() | retrieval_chain(embeddings)
    expected = [{"question": q, "answer": a} for q, a in QUESTIONS.items()]
    assert chain.batch(list(QUESTIONS)) == expected
    assert asyncio.run(chain.abatch(list(QUESTIONS))) == expected


def test_queries_of_a_chain_share_forward_passes(
    embeddings: MillpondEmbeddings, batches: list[BatchStats]
) -> None:
    embed = RunnableLambda(embeddings.embed_query, afunc=embeddings.aembed_query)
    questions = [f"what is {number} times {number}?" for number in range(64)]
    asyncio.run(embed.abatch(questions))
    assert sum(batch.texts for batch in batches) == 64
    assert len(batches) < 32


def test_threads_get_what_one_caller_gets(model: str) -> None:
    embeddings = MillpondEmbeddings(model=model, engine_options={"batch_invariant": True})
    questions = [f"what is {number} times {number}?" for number in range(64)]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(embeddings.embed_query, questions))
    assert together == list(map(embeddings.embed_query, questions))
