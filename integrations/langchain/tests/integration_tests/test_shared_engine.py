"""One engine for both adapters, and vectors equal to those of what people used before."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from langchain_huggingface import HuggingFaceEmbeddings

from langchain_millpond import MillpondEmbeddings
from millpond import Engine

TEXTS = [
    "The bakery opens at six.",
    "",
    "two\nlines, and naïve café — 3.14 €",
    "a long text " * 200,
    "The bakery opens at six.",
]


@pytest.fixture(scope="module")
def incumbent(real_engine: Engine) -> HuggingFaceEmbeddings:
    path = str(real_engine.info().model.path)
    return HuggingFaceEmbeddings(model=path, model_kwargs={"device": "cpu"})


@pytest.fixture(scope="module")
def embeddings(real_engine: Engine) -> MillpondEmbeddings:
    return MillpondEmbeddings(model=real_engine.info().model.path, dtype="float32")


def test_documents_are_those_of_hugging_face_embeddings(
    embeddings: MillpondEmbeddings, incumbent: HuggingFaceEmbeddings
) -> None:
    vectors = np.array(embeddings.embed_documents(TEXTS))
    assert np.abs(vectors - incumbent.embed_documents(TEXTS)).max() <= 1e-5


def test_queries_are_those_of_hugging_face_embeddings(
    embeddings: MillpondEmbeddings, incumbent: HuggingFaceEmbeddings
) -> None:
    for text in TEXTS:
        vector = np.array(embeddings.embed_query(text))
        assert np.abs(vector - incumbent.embed_query(text)).max() <= 1e-5


def test_prompts_are_those_of_hugging_face_embeddings(
    embeddings: MillpondEmbeddings, real_engine: Engine
) -> None:
    incumbent = HuggingFaceEmbeddings(
        model=embeddings.model,
        model_kwargs={"device": "cpu", "prompts": {"find": "find: ", "keep": "keep: "}},
        encode_kwargs={"prompt_name": "keep"},
        query_encode_kwargs={"prompt_name": "find"},
    )
    prompted = MillpondEmbeddings(
        model=embeddings.model, dtype="float32", query_prompt="find: ", document_prompt="keep: "
    )
    document, query = prompted.embed_documents(["bread"])[0], prompted.embed_query("bread")
    assert np.abs(np.array(document) - incumbent.embed_documents(["bread"])[0]).max() <= 1e-5
    assert np.abs(np.array(query) - incumbent.embed_query("bread")).max() <= 1e-5


def differ(one: list[float], other: list[float]) -> bool:
    return bool(np.abs(np.array(one) - other).max() > 1e-5)


def test_hugging_face_embeddings_prompt_queries_as_documents_unless_told_otherwise(
    embeddings: MillpondEmbeddings,
) -> None:
    incumbent = HuggingFaceEmbeddings(
        model=embeddings.model,
        model_kwargs={"device": "cpu"},
        encode_kwargs={"prompt": "keep: "},
    )
    both = embeddings.model_copy(update={"document_prompt": "keep: ", "query_prompt": "keep: "})
    assert differ(incumbent.embed_query("bread"), embeddings.embed_query("bread"))
    assert not differ(incumbent.embed_query("bread"), both.embed_query("bread"))
    documents = both.embed_documents(["bread"])[0]
    assert not differ(incumbent.embed_documents(["bread"])[0], documents)


@pytest.mark.parametrize("default", [None, "document"])
def test_hugging_face_embeddings_use_a_saved_prompt_only_as_the_default(
    default: str | None, embeddings: MillpondEmbeddings, tmp_path: Path
) -> None:
    folder = tmp_path / "prompted"
    shutil.copytree(embeddings.model, folder, copy_function=shutil.copyfile)
    path = folder / "config_sentence_transformers.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    prompts = {"query": "find: ", "document": "keep: "}
    path.write_text(json.dumps(saved | {"prompts": prompts, "default_prompt_name": default}))
    incumbent = HuggingFaceEmbeddings(model=str(folder), model_kwargs={"device": "cpu"})
    prompt = "" if default is None else "keep: "
    ours = MillpondEmbeddings(
        model=folder, dtype="float32", query_prompt=prompt, document_prompt=prompt
    )
    assert not differ(incumbent.embed_query("bread"), ours.embed_query("bread"))
    documents = ours.embed_documents(["bread"])[0]
    assert not differ(incumbent.embed_documents(["bread"])[0], documents)


def test_langchain_and_llama_index_share_one_engine_and_the_last_releases_it(model: str) -> None:
    llama_index = pytest.importorskip("llama_index.embeddings.millpond", reason="not installed")
    options = {"dtype": "float32", "max_length": 64}  # an engine that nothing else here holds
    ours = MillpondEmbeddings(model=model, **options)
    theirs = llama_index.MillpondEmbedding(model_name=model, **options)
    assert ours.embed_query("bread") == pytest.approx(theirs.get_query_embedding("bread"))

    with Engine.shared(model, **options) as watch:
        assert watch.stats().texts == 2  # both objects' texts went through one queue
    del ours
    gc.collect()
    assert len(theirs.get_text_embedding("bread")) == 384
    with Engine.shared(model, **options) as watch:
        assert watch.stats().texts == 3  # the same engine still
    del theirs
    gc.collect()
    with Engine.shared(model, **options):
        pass  # a thread lets go for what was collected, at its time; this one has when it ends
    with Engine.shared(model, **options) as watch:
        assert watch.stats().texts == 0  # a new one: the last object took the old one with it
