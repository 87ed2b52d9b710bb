"""Sparse vectors on a CPU, beside sentence-transformers' SparseEncoder.

    python -m benchmarks.cpu.kinds.sparse
    python -m benchmarks.cpu.kinds.sparse --quick

The model is a SPLADE of MiniLM-L6's shape with random weights whose bias leaves some hundred
terms of a text; the texts are docstrings of the standard library. Vectors are compared before
anything is measured. SparseEncoder runs at its defaults, and in bfloat16 with the batch size and
the `chunk_size` that are best here. Every round measures all in turn, and the median of the rounds
counts. Processor time is measured too, and says more where the machine is not idle.
Peak memory is that of a process each, which embeds the same texts dense or sparse.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from examples.docstrings import gather_passages
from sentence_transformers import SparseEncoder
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from millpond import Engine

TOKENIZER = "sentence-transformers/all-MiniLM-L6-v2"
BATCH_SIZES = (8, 16, 32, 64)
CHUNK_SIZES = (None, 32)
TERMS = 100  # of a short text
PEAK_TEXTS = 512
TOLERANCE = 1e-5


class Time(NamedTuple):
    wall_s: float
    processor_s: float


def save_model(folder: Path) -> Path:
    """A masked language model of MiniLM-L6's shape with random weights."""
    with Engine(TOKENIZER) as engine:
        tokenizer = AutoTokenizer.from_pretrained(engine.info().model.path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        ids = tokenizer("the mill stands beside a pond", return_tensors="pt")
        best = model(**ids).logits[0].amax(0)
        model.cls.predictions.bias -= best.topk(TERMS).values[-1]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def timed(run: Callable[[], Any]) -> Time:
    wall_s, processor_s = time.perf_counter(), time.process_time()
    run()
    return Time(time.perf_counter() - wall_s, time.process_time() - processor_s)


def peak_mib(folder: Path, texts: int, kind: str) -> float:
    """Peak memory of a process that embeds the texts."""
    call = [sys.executable, "-m", "benchmarks.cpu.kinds.sparse", "--peak", kind]
    done = subprocess.run(
        [*call, "--model", str(folder), "--texts", str(texts)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def print_peak(folder: Path, texts: Sequence[str], kind: str) -> None:
    with Engine(folder) as engine:
        embed = engine.embed_sparse if kind == "sparse" else engine.embed
        embed(list(texts))
    print(json.dumps(_peak_mib()))


def _peak_mib() -> float:
    """Of this program: what `getrusage` says is no less than what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024


def best_setting(model: SparseEncoder, texts: Sequence[str]) -> Callable[[Sequence[str]], Any]:
    """The batch size and slice of a text that take the least processor time for these texts."""
    found = {}
    for batch_size in BATCH_SIZES:
        for chunk_size in CHUNK_SIZES:
            model.splade_pooling_chunk_size = chunk_size
            took = timed(lambda size=batch_size: encode(model, texts, batch_size=size))
            found[took.processor_s] = (batch_size, chunk_size)
    batch_size, chunk_size = found[min(found)]
    print(f"SparseEncoder is best with batch_size={batch_size}, chunk_size={chunk_size}")
    model.splade_pooling_chunk_size = chunk_size
    return lambda texts: encode(model, texts, batch_size=batch_size)


def encode(model: SparseEncoder, texts: Sequence[str], **options: Any) -> Any:
    return model.encode(list(texts), show_progress_bar=False, **options)


def require_equal(folder: Path, texts: Sequence[str], model: SparseEncoder) -> None:
    with Engine(folder, dtype="float32") as engine:
        found = engine.embed_sparse(list(texts)).to_dense()
    expected = encode(model, texts, convert_to_sparse_tensor=False).numpy()
    assert np.abs(found - expected).max() <= TOLERANCE, np.abs(found - expected).max()
    print(f"{(expected > 0).sum(1).mean():.0f} terms a text, equal within {TOLERANCE}")


def measure(folder: Path, texts: Sequence[str], rounds: int) -> None:
    plain = SparseEncoder(str(folder), device="cpu")
    half = SparseEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    require_equal(folder, texts[:32], plain)
    with Engine(folder, dtype="float32") as exact, Engine(folder) as engine:
        print(f"millpond: {engine.info().dtype}; load {os.getloadavg()[0]:.1f}")
        peers = {
            "SparseEncoder, defaults": lambda texts: encode(plain, texts),
            "SparseEncoder, bfloat16, best": best_setting(half, texts[:32]),
            "millpond float32": exact.embed_sparse,
            "millpond auto": engine.embed_sparse,
            "millpond auto, dense": engine.embed,
        }
        times: dict[str, list[Time]] = {name: [] for name in peers}
        for _ in range(rounds):
            for name, run in peers.items():
                times[name].append(timed(lambda run=run: run(list(texts))))
    for name, took in times.items():
        wall_s = statistics.median(each.wall_s for each in took)
        processor_s = statistics.median(each.processor_s for each in took)
        rate = len(texts) / wall_s
        print(f"{name:32} {rate:8.1f} texts/s {1000 * processor_s / len(texts):8.2f} ms processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few texts, one round")
    parser.add_argument("--peak-only", action="store_true", help="only the peak of memory")
    parser.add_argument("--peak", choices=["dense", "sparse"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=int, help="for the peak of memory")
    given = parser.parse_args()
    texts = [text for _, text in gather_passages()[: given.texts or PEAK_TEXTS]]
    if given.peak:
        print_peak(given.model, texts, given.peak)
        return
    rounds, count = (1, 32) if given.quick else (3, 192)
    with TemporaryDirectory() as temporary:
        folder = save_model(Path(temporary))
        if not given.peak_only:
            measure(folder, texts[:count], rounds)
        dense, sparse = (peak_mib(folder, len(texts), kind) for kind in ("dense", "sparse"))
    print(
        f"peak memory: dense {dense:.0f} MiB, sparse {sparse:.0f} MiB, {sparse / dense:.2f} times"
    )


if __name__ == "__main__":
    main()
