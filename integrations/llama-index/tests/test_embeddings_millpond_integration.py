"""`MillpondEmbedding` inside LlamaIndex, on the real model and real text."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from llama_index.core import (
    Document,
    Settings,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.callbacks.schema import EventPayload
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.embeddings.millpond import MillpondEmbedding
from llama_index.vector_stores.chroma import ChromaVectorStore

from millpond import Engine

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MODULES = ("csv", "decimal", "difflib", "gzip", "heapq", "shlex", "smtplib", "sqlite3", "wave")
ANSWERS = {
    "How do I tell whether two texts are almost the same?": "difflib",
    "What do I use for exact arithmetic with money?": "decimal",
    "Which module keeps the smallest item of a list at hand?": "heapq",
}
HERE = Path(__file__).parent


def documentation() -> list[Document]:
    """Docstrings of the standard library, under stable ids."""
    return [
        Document(
            text=inspect.getdoc(importlib.import_module(name)) or name,
            id_=name,
            metadata={"module": name},
        )
        for name in MODULES
    ]


SPLITTER = SentenceSplitter(chunk_size=150, chunk_overlap=0)  # its tokenizer comes with it


def best_modules(index: VectorStoreIndex) -> dict[str, str]:
    retriever = index.as_retriever(similarity_top_k=1)
    return {question: retriever.retrieve(question)[0].metadata["module"] for question in ANSWERS}


@pytest.fixture(scope="module")
def nodes() -> list[TextNode]:
    return [node for node in SPLITTER(documentation()) if isinstance(node, TextNode)]


@pytest.fixture
def chroma() -> Iterator[Any]:
    """Makes Chroma clients that tell nobody and are closed after the test."""
    clients: list[Any] = []

    def client(path: Path | None = None) -> Any:
        quiet = chromadb.Settings(anonymized_telemetry=False)
        if path is None:
            clients.append(chromadb.EphemeralClient(settings=quiet))
        else:
            clients.append(chromadb.PersistentClient(path=str(path), settings=quiet))
        return clients[-1]

    yield client
    for opened in clients:
        opened.close()


@pytest.fixture
def script_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A loop for LlamaIndex's sync methods to run async ones on, closed again.

    Left alone they make one and leave it open, and change asyncio for the whole process.
    """
    monkeypatch.setattr("nest_asyncio.apply", lambda: None)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


class Capture(BaseEventHandler):
    starts: list[EmbeddingStartEvent] = Field(default_factory=list)
    ends: list[EmbeddingEndEvent] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, EmbeddingStartEvent):
            self.starts.append(event)
        elif isinstance(event, EmbeddingEndEvent):
            self.ends.append(event)


@pytest.fixture
def recorded() -> Iterator[Capture]:
    """The embedding events of the test."""
    recorder = Capture()
    root = get_dispatcher()
    root.add_event_handler(recorder)
    yield recorder
    root.event_handlers.remove(recorder)


# In indexes.


def test_settings_embed_model_is_used(real: MillpondEmbedding) -> None:
    Settings.embed_model = real
    index = VectorStoreIndex.from_documents(documentation(), transformations=[SPLITTER])
    assert best_modules(index) == ANSWERS


@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("show_progress", [False, True], ids=["quiet", "progress"])
def test_an_index_is_built_and_asked(
    use_async: bool,
    show_progress: bool,
    real: MillpondEmbedding,
    nodes: list[TextNode],
    recorded: Capture,
    script_loop: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = VectorStoreIndex(
        nodes, embed_model=real, use_async=use_async, show_progress=show_progress
    )
    assert [len(end.chunks) for end in recorded.ends] == [len(nodes)]  # in a single call
    assert best_modules(index) == ANSWERS
    assert ("Generating embeddings" in capsys.readouterr().err) == show_progress


def test_an_index_is_asked_from_an_event_loop(
    real: MillpondEmbedding, nodes: list[TextNode]
) -> None:
    retriever = VectorStoreIndex(nodes, embed_model=real).as_retriever(similarity_top_k=1)

    async def main() -> list[str]:
        hits = await asyncio.gather(*map(retriever.aretrieve, ANSWERS))
        return [hit[0].metadata["module"] for hit in hits]

    assert asyncio.run(main()) == list(ANSWERS.values())


def test_vectors_and_hits_are_those_of_the_incumbent(
    real: MillpondEmbedding, nodes: list[TextNode], tmp_path: Path
) -> None:
    incumbent = HuggingFaceEmbedding(
        model_name=str(real.engine.info().model.path), device="cpu", cache_folder=str(tmp_path)
    )
    texts = [node.text for node in nodes] + ["", "naïve 🦊", "word " * 600]
    ours, theirs = real.get_text_embedding_batch(texts), incumbent.get_text_embedding_batch(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for question in ANSWERS:
        np.testing.assert_allclose(
            real.get_query_embedding(question), incumbent.get_query_embedding(question), atol=1e-5
        )
    ranked = [
        [hit.node_id for hit in index.as_retriever(similarity_top_k=5).retrieve(question)]
        for index in (VectorStoreIndex(nodes, embed_model=m) for m in (real, incumbent))
        for question in ANSWERS
    ]
    assert ranked[: len(ANSWERS)] == ranked[len(ANSWERS) :]


def test_a_stored_index_is_loaded_again(
    real: MillpondEmbedding, nodes: list[TextNode], tmp_path: Path
) -> None:
    VectorStoreIndex(nodes, embed_model=real).storage_context.persist(tmp_path)
    stored = StorageContext.from_defaults(persist_dir=str(tmp_path))
    index = load_index_from_storage(stored, embed_model=real)
    assert isinstance(index, VectorStoreIndex)
    assert best_modules(index) == ANSWERS


@pytest.mark.parametrize("on_disk", [False, True], ids=["ephemeral", "disk"])
def test_chroma_keeps_the_vectors(
    on_disk: bool, real: MillpondEmbedding, nodes: list[TextNode], chroma: Any, tmp_path: Path
) -> None:
    collection = chroma(tmp_path if on_disk else None).create_collection("documentation")
    store = StorageContext.from_defaults(vector_store=ChromaVectorStore(collection))
    VectorStoreIndex(nodes, storage_context=store, embed_model=real)
    assert collection.count() == len(nodes)
    if on_disk:
        collection = chroma(tmp_path).get_collection("documentation")
    again = VectorStoreIndex.from_vector_store(ChromaVectorStore(collection), embed_model=real)
    assert best_modules(again) == ANSWERS


# In models.


def pipeline(embed_model: MillpondEmbedding, **options: Any) -> IngestionPipeline:
    return IngestionPipeline(transformations=[SPLITTER, embed_model], **options)


def vectors(nodes: Any) -> dict[str, list[float]]:
    assert all(node.embedding for node in nodes)
    return {node.text: node.embedding for node in nodes}


@pytest.fixture(scope="module")
def expected(nodes: list[TextNode], real_engine: Engine) -> dict[str, list[float]]:
    texts = [node.get_content(metadata_mode="embed") for node in nodes]  # type: ignore[arg-type]
    rows = real_engine.embed(texts, task="document", normalize=True).tolist()
    return dict(zip([node.text for node in nodes], rows, strict=True))


def test_a_pipeline_embeds_and_finds_its_work_in_the_cache_again(
    real: MillpondEmbedding, expected: dict[str, list[float]], tmp_path: Path
) -> None:
    cache = IngestionCache()
    assert vectors(pipeline(real, cache=cache).run(documents=documentation())) == expected
    ran = real.engine.stats().texts
    assert vectors(pipeline(real, cache=cache).run(documents=documentation())) == expected
    cache.persist(str(tmp_path / "cache.json"))
    stored = IngestionCache.from_persist_path(str(tmp_path / "cache.json"))
    copied = MillpondEmbedding.from_dict(real.to_dict())
    assert vectors(pipeline(copied, cache=stored).run(documents=documentation())) == expected
    assert real.engine.stats().texts == ran


@pytest.mark.parametrize(
    "options", [{"dimensions": 64}, {"text_instruction": "passage: "}, {"truncate": "start"}]
)
def test_an_option_that_changes_vectors_misses_the_cache(
    options: dict[str, Any], real: MillpondEmbedding
) -> None:
    cache = IngestionCache()
    pipeline(real, cache=cache).run(documents=documentation()[:1])
    ran = real.engine.stats().texts
    other = MillpondEmbedding(engine=real.engine, **options)
    found = pipeline(other, cache=cache).run(documents=documentation()[:1])
    assert real.engine.stats().texts == ran + len(found)


def test_a_pipeline_runs_in_an_event_loop(
    real: MillpondEmbedding, expected: dict[str, list[float]]
) -> None:
    cache = IngestionCache()

    async def main() -> None:
        first = await pipeline(real, cache=cache).arun(documents=documentation())
        ran = real.engine.stats().texts
        second = await pipeline(real, cache=cache).arun(documents=documentation())
        assert vectors(first) == vectors(second) == expected
        assert real.engine.stats().texts == ran

    asyncio.run(main())


# Without a splitter, whose tokenizer would be downloaded in every process.


@pytest.mark.slow
def test_a_pipeline_runs_in_spawned_processes(
    real: MillpondEmbedding, nodes: list[TextNode], expected: dict[str, list[float]]
) -> None:
    given = [node.model_copy() for node in nodes]
    assert vectors(IngestionPipeline(transformations=[real]).run(nodes=given, num_workers=2)) == (
        expected
    )


@pytest.mark.slow
def test_a_pipeline_runs_in_the_processes_of_an_event_loop(
    real: MillpondEmbedding, nodes: list[TextNode], expected: dict[str, list[float]]
) -> None:
    given = [node.model_copy() for node in nodes]
    running = IngestionPipeline(transformations=[real]).arun(nodes=given, num_workers=2)
    assert vectors(asyncio.run(running)) == expected


# What LlamaIndex sees of it.


async def every_way(model: MillpondEmbedding) -> list[list[list[float]]]:
    return [
        [model.get_query_embedding("one")],
        [model.get_text_embedding("one")],
        model.get_text_embedding_batch(["one", "two"]),
        [await model.aget_query_embedding("one")],
        [await model.aget_text_embedding("one")],
        await model.aget_text_embedding_batch(["one", "two"]),
    ]


def test_events_are_sent_for_every_call(real: MillpondEmbedding, recorded: Capture) -> None:
    given = asyncio.run(every_way(real))
    assert [event.embeddings for event in recorded.ends] == given
    assert len(recorded.starts) == len(given)
    assert recorded.starts[0].model_dict["class_name"] == "MillpondEmbedding"
    assert recorded.starts[0].model_dict["model_name"] == MODEL


def test_callbacks_are_called_for_every_call(real: MillpondEmbedding) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    watched = MillpondEmbedding(engine=real.engine, callback_manager=CallbackManager([handler]))
    given = asyncio.run(every_way(watched))
    pairs = handler.get_event_pairs(CBEventType.EMBEDDING)
    assert [end.payload[EventPayload.EMBEDDINGS] for _, end in pairs] == given


def test_an_embeddings_cache_saves_the_engine_the_work(real: MillpondEmbedding) -> None:
    cached = MillpondEmbedding(engine=real.engine, embeddings_cache=SimpleKVStore())
    first = cached.get_text_embedding_batch(["a pond", "a mill"])
    ran = real.engine.stats().texts
    assert cached.get_text_embedding_batch(["a mill", "a pond"]) == first[::-1]
    assert real.engine.stats().texts == ran


# Beside others.


def test_the_engine_is_the_one_the_process_shares(
    real: MillpondEmbedding, real_engine: Engine
) -> None:
    before = real_engine.stats().texts
    vector = real.get_query_embedding("a pond")
    assert real_engine.stats().texts == before + 1
    assert vector == real_engine.embed("a pond", task="query", normalize=True).tolist()


def test_a_langchain_object_shares_the_engine(real: MillpondEmbedding) -> None:
    langchain = pytest.importorskip(
        "langchain_millpond", reason="langchain-millpond is not installed"
    )
    other = langchain.MillpondEmbeddings(model=MODEL, dtype="float32")
    before = real.engine.stats().texts
    vector = other.embed_query("a pond")
    assert real.engine.stats().texts == before + 1
    np.testing.assert_allclose(vector, real.get_query_embedding("a pond"), atol=1e-6)


# What is shown to users runs.


def test_the_example_answers_its_questions(capsys: pytest.CaptureFixture[str]) -> None:
    path = HERE.parents[2] / "examples" / "llama_index_query.py"
    assert len(path.read_text().splitlines()) < 50
    spec = importlib.util.spec_from_file_location("llama_index_query", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main()
    lines = capsys.readouterr().out.splitlines()
    best = [lines[place + 1] for place in range(0, len(lines), 4)]
    assert [line.split()[1] for line in best] == ["heapq:", "difflib:", "decimal:"]
