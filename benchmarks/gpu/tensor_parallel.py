"""What splitting a large model among GPUs brings: a lone query, ingestion, and the same vectors.

    python -m benchmarks.gpu.tensor_parallel             # on 1, 2 and 4 GPUs, as many as there are
    python -m benchmarks.gpu.tensor_parallel --cpu       # a tiny model and two ranks on a CPU

The model has the shape of Qwen3 8B (`config.json` of Qwen/Qwen3-Embedding-8B) and random weights,
in bfloat16: 16 GB, written to a temporary folder. One engine at a time, on the same texts.

- a lone query: one after the other, the median of its milliseconds.
- ingestion: real text in one call, tokens a second.
- cosine: the least of any text to its vector on one GPU.

Wanted: a query on two GPUs in 0.7 of the time of one and on four in 0.5, ingestion on two at 1.5
times the rate of one, cosines of 0.9999.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from millpond import Engine

from ..report.machine import machine
from .models.shapes import SHAPES, TINY, Shape, Texts, english_words, save

WORDS_PER_TOKEN = 0.7
QWEN3_8B = {
    **SHAPES["Qwen3-0.6B"].config,
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "intermediate_size": 12_288,
    "vocab_size": 151_665,
}
MOST_QUERY_SHARE = {2: 0.7, 4: 0.5}
LEAST_RATE, LEAST_COSINE = 1.5, 0.9999


def measured(
    folder: Path, size: int, options: Mapping[str, Any], texts: Sequence[str], asked: Sequence[str]
) -> dict[str, Any]:
    """Figures of one engine, and its vectors."""
    split: Any = {} if size == 1 else {"tensor_parallel_size": size}
    with Engine(folder, **options, **split) as engine:
        for _ in range(2):  # shapes are captured when they come back
            first = [engine.embed(query) for query in asked]
            result = engine.submit(list(texts)).result()
        times = [_seconds(engine, [query]) for query in asked]
        seconds = _seconds(engine, texts)
        vectors = np.concatenate([result.vectors, np.stack(first)])
        info = engine.info()
    return {
        "size": size,
        "device": info.device,
        "query_ms": 1e3 * statistics.median(times),
        "tokens_per_s": int(sum(result.token_counts)) / seconds,
        "batch_invariant": info.batch_invariant,
        "vectors": vectors,
    }


def _seconds(engine: Engine, texts: Sequence[str]) -> float:
    began = time.perf_counter()
    engine.embed(list(texts))
    return time.perf_counter() - began


def compared(found: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """Figures beside those of one device."""
    size = found["size"]
    row = {key: value for key, value in found.items() if key != "vectors"}
    row["query_share"] = found["query_ms"] / one["query_ms"]
    row["rate"] = found["tokens_per_s"] / one["tokens_per_s"]
    row["least_cosine"] = _least_cosine(found["vectors"], one["vectors"])
    row["passed"] = row["least_cosine"] >= LEAST_COSINE and (
        size == 1
        or (
            row["query_share"] <= MOST_QUERY_SHARE.get(size, 1.0)
            and (size != 2 or row["rate"] >= LEAST_RATE)
        )
    )
    return row


def _least_cosine(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(1) / lengths).min())


def saved_model(shape: Shape, folder: Path, words: Sequence[str]) -> Path:
    """A checkpoint of this shape: made with one layer, and its weights then replaced by all."""
    saved = save(replace(shape, config={**shape.config, "num_hidden_layers": 1}), folder, words)
    model_class = getattr(transformers, shape.model)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(shape.dtype)
        try:
            model = model_class(model_class.config_class(**shape.config))
        finally:
            torch.set_default_dtype(torch.float32)
    (saved / "model.safetensors").unlink()
    model.save_pretrained(saved)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="a tiny model on a CPU")
    parser.add_argument("--texts", type=int, default=512, help="passages in a call")
    layers = QWEN3_8B["num_hidden_layers"]
    parser.add_argument("--layers", type=int, default=layers, help="fewer, where time is short")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("millpond").setLevel(logging.INFO)
    config = {**QWEN3_8B, "num_hidden_layers": given.layers}
    shape = replace(SHAPES["Qwen3-0.6B"], config=config)
    options: dict[str, Any] = {"dtype": "bfloat16"}
    sizes = [size for size in (1, 2, 4) if size <= torch.cuda.device_count()]
    if given.cpu:
        shape, options, sizes = TINY["tiny Qwen3"], {"dtype": "float32"}, [1, 2]
    print(json.dumps(machine()))
    drawn = Texts(english_words(), WORDS_PER_TOKEN)
    texts, asked = drawn.passages(given.texts), drawn.queries(min(given.texts, 128))
    with tempfile.TemporaryDirectory() as folder:
        saved = saved_model(shape, Path(folder), drawn.words)
        one = None
        for size in sizes:
            options["device"] = "cpu" if given.cpu else "cuda:0" if size == 1 else "auto"
            found = measured(saved, size, options, texts, asked)
            one = one or found
            print(json.dumps(compared(found, one)), flush=True)


if __name__ == "__main__":
    main()
