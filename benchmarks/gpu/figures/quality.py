"""How much of a trained model half precision and float8 keep: cosines, and what is retrieved."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from millpond import Engine

from ...cpu.retrieval import judgements, lines, mean_ndcg
from ..checks import least_cosine
from ..models.shapes import Texts, english_words
from ..report import Report

NAME = "all-MiniLM-L6-v2"
DTYPES = ("float32", "auto", "fp8")
LEAST_COSINES = {"auto": 0.9999, "fp8": 0.998}
MOST_LOST_NDCG = 0.005


def check_real_model(report: Report, model: Path, judged: Path | None, device: str) -> None:
    """Cosines to float32 of texts of every length, and nDCG@10 where there are judgements."""
    drawn = Texts(english_words(), words_per_token=0.65)
    texts = [*drawn.queries(200), *drawn.passages(400), *drawn.chunks(50, longest=256)]
    expected, best = np.zeros(0), 0.0
    for dtype in DTYPES if device.startswith("cuda") else DTYPES[:2]:
        with Engine(model, device=device, dtype=dtype) as engine:
            vectors = engine.embed(texts)
            score = None if judged is None else ndcg_at_10(engine, judged)
        if dtype == "float32":
            expected, best = vectors, score or 0.0
        else:
            cosine = least_cosine(vectors, expected)
            bound = LEAST_COSINES[dtype]
            report.check(NAME, f"{dtype}, least cosine ≥ {bound}", cosine, cosine >= bound)
        if score is not None:
            within = abs(score - best) <= MOST_LOST_NDCG
            report.check(NAME, f"{dtype}, nDCG@10 within {MOST_LOST_NDCG}", score, within)


def ndcg_at_10(engine: Engine, folder: Path) -> float:
    """Of the texts, queries and judgements in a folder."""
    documents, queries = (lines(folder / f"{name}.jsonl") for name in ("docs", "queries"))
    texts = [f"{each.get('title', '')} {each['text']}".strip() for each in documents]
    vectors = engine.embed(texts, task="document", normalize=True)
    asked = engine.embed([each["text"] for each in queries], task="query", normalize=True)
    ids = [each["id"] for each in queries], [each["id"] for each in documents]
    return mean_ndcg(asked @ vectors.T, *ids, judgements(folder / "qrels.tsv"))
