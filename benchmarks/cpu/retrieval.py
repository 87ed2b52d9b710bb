"""How well each precision retrieves: nDCG@10 on a set of texts, queries and relevance judgements.

    python -m benchmarks.cpu.retrieval FOLDER --dtypes float32 auto int8

The folder holds `docs.jsonl` (id, title, text), `queries.jsonl` (id, text) and `qrels.tsv` (query,
document, grade). Cranfield is one such set: 1,400 abstracts and 225 queries. nDCG is that
of Järvelin and Kekäläinen (2002), the gain linear in the grade, over queries with judgements.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from millpond import Engine

CUTOFF = 10
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
Judgements = dict[str, dict[str, float]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def judgements(path: Path) -> Judgements:
    """Grades above zero, by query and document."""
    found: Judgements = defaultdict(dict)
    for line in path.read_text().splitlines():
        query, document, grade = line.split("\t")
        if float(grade) > 0:
            found[query][document] = float(grade)
    return found


def ndcg(ranked: list[str], grades: dict[str, float]) -> float:
    """Of one query's best documents, best first."""
    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    gains = np.array([grades.get(document, 0.0) for document in ranked[:CUTOFF]])
    ideal = np.sort([*grades.values()])[::-1][:CUTOFF]
    return float((gains * discounts[: len(gains)]).sum() / (ideal * discounts[: len(ideal)]).sum())


def mean_ndcg(
    scores: np.ndarray, queries: list[str], documents: list[str], graded: Judgements
) -> float:
    """`scores` are `[queries, documents]`."""
    best = np.argsort(-scores, axis=1)[:, :CUTOFF]
    values = [
        ndcg([documents[place] for place in row], graded[query])
        for query, row in zip(queries, best, strict=True)
        if query in graded
    ]
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "auto", "int8"])
    options = parser.parse_args()
    documents, queries = (lines(options.folder / f"{name}.jsonl") for name in ("docs", "queries"))
    graded = judgements(options.folder / "qrels.tsv")
    texts = [f"{each.get('title', '')} {each['text']}".strip() for each in documents]
    ids = [each["id"] for each in queries], [each["id"] for each in documents]
    first = None
    print("Cosines are to the first dtype, of documents that are not empty.\n")
    print("| dtype | nDCG@10 | least and mean cosine |")
    print("|---|---|---|")
    for dtype in options.dtypes:
        with Engine(options.model, dtype=dtype) as engine:
            vectors = engine.embed(texts, task="document", normalize=True)
            asked = engine.embed([each["text"] for each in queries], task="query", normalize=True)
            used = engine.info().dtype
        first = vectors if first is None else first
        cosines = (vectors * first).sum(axis=1)[[bool(text) for text in texts]]
        value = mean_ndcg(asked @ vectors.T, *ids, graded)
        print(f"| {used} | {value:.4f} | {cosines.min():.5f}, {cosines.mean():.5f} |", flush=True)


if __name__ == "__main__":
    main()
