"""Texts a second of a multi-vector model on a CPU, beside sentence-transformers.

    python -m benchmarks.cpu.kinds.multi_vector
    python -m benchmarks.cpu.kinds.multi_vector --quick

The model has the shape of ColBERTv2 on MiniLM-L6 (128 dimensions, queries filled up to 32) and
random weights. Vectors are compared before anything is measured. `MultiVectorEncoder` runs at its
defaults, and in bfloat16 with the batch size that is best here (it sorts by length itself). Every
round measures all in turn; of the rounds the median counts, in seconds of the clock and of the
processor. The clock needs a machine that does nothing else; the processor's time says something on
a busy one too.
"""

from __future__ import annotations

import argparse
import os
import string
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from millpond import Engine

from .rerank import Query, make_queries, save_model

DIMENSION = 128
QUERY_LENGTH, QUERY_WORDS = 32, 8
BATCH_SIZES = (8, 16, 32, 64, 128)
FLOAT32_TOLERANCE = 1e-5
IDLE_LOAD = 0.5

Encode = Callable[[Sequence[str], str], Sequence[object]]
"""Token vectors of texts of a task."""


class Seconds(NamedTuple):
    clock: float
    processor: float


def save(folder: Path) -> Path:
    """A multi-vector model of MiniLM-L6's shape, as sentence-transformers saves it."""
    plain = save_model(folder / "plain")
    expansion = {"strategy": "fixed", "attend": False, "length": QUERY_LENGTH}
    transformer = Transformer(str(plain), max_seq_length=300, query_expansion=expansion)
    names = {"module_input_name": "token_embeddings"}
    projection = Dense(384, DIMENSION, bias=False, activation_function=torch.nn.Identity(), **names)
    modules = [
        transformer,
        projection,
        MultiVectorMask(list(string.punctuation)),
        Normalize(**names),
    ]
    model = MultiVectorEncoder(modules=modules, device="cpu")
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def reference(folder: Path, dtype: torch.dtype, batch_size: int) -> Encode:
    """sentence-transformers in a precision."""
    arguments = {"dtype": dtype}
    model = MultiVectorEncoder(str(folder), device="cpu", model_kwargs=arguments)
    calls = {"query": model.encode_query, "document": model.encode_document}
    return lambda texts, task: calls[task](
        list(texts), batch_size=batch_size, convert_to_numpy=dtype == torch.float32
    )


def best_batch_size(folder: Path, texts: Sequence[str]) -> int:
    """The batch size that takes least processor time for these documents in bfloat16."""
    taken = {
        size: measured(reference(folder, torch.bfloat16, size), texts, "document").processor
        for size in BATCH_SIZES
    }
    return min(taken, key=lambda size: taken[size])


def measured(encode: Encode, texts: Sequence[str], task: str) -> Seconds:
    clock, processor = time.perf_counter(), time.process_time()
    encode(texts, task)
    return Seconds(time.perf_counter() - clock, time.process_time() - processor)


def require_equal(engine: Engine, folder: Path, queries: Sequence[Query]) -> None:
    """Raises `AssertionError` where Millpond's vectors are not the reference's."""
    encode = reference(folder, torch.float32, 32)
    texts = {"query": [q.text for q in queries[:2]], "document": queries[0].passages[:20]}
    for task, some in texts.items():
        found = engine.embed_tokens(some, task=task)
        for ours, theirs in zip(found, encode(some, task), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT32_TOLERANCE)


def compare(encoders: dict[str, Encode], texts: Sequence[str], task: str, rounds: int) -> None:
    """Print texts a second of the clock and of the processor, and how many times the first's."""
    for encode in encoders.values():  # what is made at the first call
        encode(texts[:8], task)
    taken: dict[str, list[Seconds]] = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, encode in encoders.items():
            taken[name].append(measured(encode, texts, task))
    medians = {name: np.median(np.array(times), axis=0) for name, times in taken.items()}
    first = next(iter(medians.values()))
    print(f"\n{len(texts)} texts, task={task}")
    print(f"{'':34}{'texts/s':>10}{'':>8}{'per CPU s':>12}")
    for name, median in medians.items():
        (clock, processor), times = len(texts) / median, first / median
        print(f"{name:34}{clock:10.1f}{times[0]:7.2f}×{processor:12.1f}{times[1]:7.2f}×")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    options = parser.parse_args(arguments)
    count, rounds = (1, 1) if options.quick else (3, 3)
    load = os.getloadavg()[0]
    print(f"load {load:.1f}" + ("" if load <= IDLE_LOAD else ": the clock says nothing here"))
    with TemporaryDirectory() as temporary:
        folder = save(Path(temporary))
        queries = make_queries(folder, count)
        documents = [passage for query in queries for passage in query.passages]
        texts = [" ".join(passage.split()[:QUERY_WORDS]) for passage in documents]
        with Engine(folder, dtype="float32", device="cpu") as whole:
            require_equal(whole, folder, queries)
            half = Engine(folder, device="cpu")
            size = best_batch_size(folder, documents[:100])
            encoders: dict[str, Encode] = {
                "MultiVectorEncoder, float32": reference(folder, torch.float32, 32),
                f"MultiVectorEncoder, bfloat16, {size}": reference(folder, torch.bfloat16, size),
                "Millpond, float32": lambda some, task: whole.embed_tokens(some, task=task),
                f"Millpond, {half.info().dtype}": lambda some, task: half.embed_tokens(
                    some, task=task
                ),
            }
            with half:
                compare(encoders, documents, "document", rounds)
                compare(encoders, texts, "query", rounds)
                rank = {
                    name: (lambda some, _, engine=engine: engine.rank(queries[0].text, some))
                    for name, engine in (("rank, float32", whole), ("rank, half", half))
                }
                compare(rank, documents, "rank", rounds)


if __name__ == "__main__":
    main()
