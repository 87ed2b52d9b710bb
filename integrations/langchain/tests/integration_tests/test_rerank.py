"""Rerankers beside the real embedding model, over a real store; and the example that does so."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from sentence_transformers import CrossEncoder

from langchain_millpond import MillpondCrossEncoder, MillpondEmbeddings, MillpondRerank
from millpond import Engine
from multi_vector import save_multi_vector

ROOT = Path(__file__).parents[4]
QUERY = "when can I buy bread?"
TEXTS = [
    "The bakery opens at six.",
    "Rain is expected.",
    "The mill grinds grain.",
    "Bread is sold until noon.",
]


def test_a_retriever_reranks_what_a_store_finds(model: str, tiny_reranker: Path) -> None:
    store = FAISS.from_texts(TEXTS, MillpondEmbeddings(model=model))
    reranker = MillpondRerank(model=tiny_reranker, dtype="float32", top_n=2)
    retriever = ContextualCompressionRetriever(
        base_compressor=reranker, base_retriever=store.as_retriever(search_kwargs={"k": 3})
    )
    found = store.similarity_search(QUERY, k=3)
    expected = reranker.compress_documents(found, QUERY)
    assert len(expected) == 2
    assert retriever.invoke(QUERY) == expected
    assert asyncio.run(retriever.ainvoke(QUERY)) == expected


def test_scores_are_those_of_sentence_transformers(tiny_reranker: Path) -> None:
    pairs = [(QUERY, text) for text in TEXTS]
    expected = CrossEncoder(str(tiny_reranker), device="cpu").predict(pairs)
    encoder = MillpondCrossEncoder(model=tiny_reranker, dtype="float32")
    np.testing.assert_allclose(encoder.score(pairs), expected, atol=1e-5)


@pytest.mark.slow
def test_the_example_reranks_what_the_store_finds(
    tiny_reranker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import langchain_rerank

    langchain_rerank.main(str(tiny_reranker))
    answers = capsys.readouterr().out.strip().split("\n\n")
    assert len(answers) == 3
    for answer in answers:
        question, *lines = answer.splitlines()
        assert question.endswith("?")
        scores = [float(re.split(r"\s+", line.strip())[0]) for line in lines]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)


def test_a_multi_vector_model_reranks_too(tmp_path: Path) -> None:
    folder = save_multi_vector(tmp_path)
    texts = ["mill", "the stone grinds", "grain"]
    with Engine(folder, device="cpu") as engine:
        ranked = engine.rank("the stone", texts, top_n=2)
        reranker = MillpondRerank(engine=engine, top_n=2)
        documents = [Document(page_content=text) for text in texts]
        for found in (
            reranker.compress_documents(documents, "the stone"),
            asyncio.run(reranker.acompress_documents(documents, "the stone")),
        ):
            scores = [each.metadata["relevance_score"] for each in found]
            assert scores == [one.score for one in ranked]
        encoder = MillpondCrossEncoder(engine=engine)
        pairs = [("the stone", text) for text in texts]
        assert list(encoder.score(pairs)) == engine.score(pairs).tolist()
