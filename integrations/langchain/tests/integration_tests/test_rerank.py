"""Rerankers beside the real embedding model, over a real store; and the example that does so."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_community.vectorstores import FAISS
from sentence_transformers import CrossEncoder

from langchain_millpond import MillpondCrossEncoder, MillpondEmbeddings, MillpondRerank

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
