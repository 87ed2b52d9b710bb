"""What the prefix cache brings to queries, and what it costs texts that share nothing.

    python -m benchmarks.cpu.prefix_cache --dtype bfloat16    # --quick: four layers, a few seconds

A checkpoint of Qwen3-Embedding-0.6B's shape with random weights is loaded twice, the cache on and
off. The two take turns within every round, on texts that are new in each:

- queries: an instruction of 40 tokens before 10 that are nobody else's, from several callers.
- passages: real text with nothing in common, in one call.

A ratio is the median of the rounds' own. Before anything is timed the vectors are compared. The
ratio of the process's processor time stands beside it: other processes disturb that less.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from millpond import Engine

from ..gpu.models.shapes import SHAPES, Texts, english_words, save
from ..peers.agreement import compare
from ..report.machine import machine

INSTRUCTION_TOKENS = 40
QUERY_TOKENS = 10
VOCABULARY = 24_000  # the tokenizer's words; a table of 151,669 takes memory and no time
LEAST_GAIN = {"cpu": 2.5, "cuda": 2.0}
MOST_COST = 0.03
WARM_UP_ROUNDS = 2  # on a GPU the second records what later ones replay
SPARE_TEXTS = 64  # for the comparison and the warm-up


class Words:
    """English in its order, and the tokens that each word takes."""

    def __init__(self, tokenizer: Any) -> None:
        words = english_words()
        distinct = sorted(set(words))
        pieces = tokenizer(distinct, add_special_tokens=False)["input_ids"]
        lengths = dict(zip(distinct, map(len, pieces), strict=True))
        self.words = [word for word in words if lengths[word]]
        self._lengths = np.array([lengths[word] for word in self.words])

    def cut(self, tokens: int, rng: random.Random) -> str:
        """Neighbouring words of exactly so many tokens."""
        while True:
            start = rng.randrange(len(self.words) - tokens)
            ends = np.cumsum(self._lengths[start : start + tokens])
            last = int(np.searchsorted(ends, tokens))
            if ends[last] == tokens:
                return " ".join(self.words[start : start + last + 1])

    def queries(self, count: int, seed: int) -> list[str]:
        """All different."""
        rng, found = random.Random(seed), dict[str, None]()
        while len(found) < count:
            found[self.cut(QUERY_TOKENS, rng)] = None
        return [*found]

    def passages(self, count: int, seed: int) -> list[str]:
        """Log-normal lengths, a median of about 70 tokens."""
        return Texts(self.words, words_per_token=0.65).passages(count, seed)


@dataclass(frozen=True)
class Run:
    """What one engine did with the texts of one round."""

    texts_per_s: float
    texts_per_cpu_s: float
    """Of the time that all of the process's threads were computing, or waiting in a loop."""
    cached_share: float
    """Of the tokens."""


def checkpoint(folder: Path, layers: int) -> tuple[Path, Words]:
    shape = SHAPES["Qwen3-0.6B"]
    config = {**shape.config, "vocab_size": VOCABULARY, "num_hidden_layers": layers}
    saved = save(replace(shape, config=config), folder, english_words())
    return saved, Words(transformers.AutoTokenizer.from_pretrained(folder / "bare"))


def check_agreement(engines: dict[str, Engine], words: Words, dtype: str) -> None:
    """Of texts whose prefix was in the cache, too. Raises `Disagrees`."""
    queries, passages = words.queries(SPARE_TEXTS, -1), words.passages(SPARE_TEXTS // 4, -1)
    for task, texts in (("query", queries), ("document", passages)):
        whole = engines["off"].embed(texts, task=task, priority="bulk")
        for _ in range(2):
            found = engines["auto"].embed(texts, task=task, priority="bulk")
            print(f"{task} vectors: {compare(found, whole, dtype)}", flush=True)


def measure(engine: Engine, calls: Sequence[Sequence[str]], task: str) -> Run:
    """All calls at once, each from a thread of its own."""
    before, started_s, started_cpu_s = engine.stats(), time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(len(calls)) as callers:
        for vectors in callers.map(lambda texts: engine.embed(texts, task=task), calls):
            assert np.isfinite(vectors).all()
    seconds, cpu_seconds = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    after = engine.stats()
    tokens = after.tokens - before.tokens
    cached = after.cached_tokens - before.cached_tokens
    texts = sum(map(len, calls))
    return Run(texts / seconds, texts / cpu_seconds, cached / tokens)


def one_round(
    figure: str, engines: dict[str, Engine], words: Words, number: int, options: argparse.Namespace
) -> dict[str, Run]:
    """A figure of both engines, on the texts of this round."""
    order = sorted(engines, reverse=bool(number % 2))
    if figure == "passages":
        passages = words.passages(options.passages, 2 * number + 1)
        return {name: measure(engines[name], [passages], "document") for name in order}
    queries, callers = words.queries(options.queries, 2 * number), options.callers
    calls = [queries[i::callers] for i in range(callers)]
    return {name: measure(engines[name], calls, "query") for name in order}


def table(rounds: dict[str, list[dict[str, Run]]], device: str) -> str:
    lines = [
        "| texts/s | cache off | on | on ÷ off | rounds | by processor time | cached | wanted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    wanted_of = {"queries": LEAST_GAIN[device], "passages": 1 - MOST_COST}
    for figure, found in rounds.items():
        wanted = wanted_of[figure]
        off, on = ([one[name] for one in found] for name in ("off", "auto"))
        ratios = [b.texts_per_s / a.texts_per_s for a, b in zip(off, on, strict=True)]
        cpu_ratios = [b.texts_per_cpu_s / a.texts_per_cpu_s for a, b in zip(off, on, strict=True)]
        ratio = statistics.median(ratios)
        row = (
            figure,
            *(f"{statistics.median(run.texts_per_s for run in runs):.1f}" for runs in (off, on)),
            f"{ratio:.3f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{statistics.median(cpu_ratios):.3f}",
            f"{statistics.median(run.cached_share for run in on):.0%}",
            f"{wanted:.2f}: {'reached' if ratio >= wanted else 'MISSED'}",
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def facts(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """What the figures are of."""
    device = torch.device(options.device)
    return {
        **machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": engine.info().dtype,
        "prefixes": engine.info().routes[0].prefixes,
        "options": {name: value for name, value in vars(options).items() if name != "out"},
    }


def contest(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device).type
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder, words = checkpoint(Path(scratch), options.layers)
        instruction = words.cut(INSTRUCTION_TOKENS, random.Random(0)) + " "
        engines = {
            cache: stack.enter_context(
                Engine(
                    folder,
                    device=options.device,
                    dtype=options.dtype,
                    prefix_cache=cache,
                    prompts={"query": instruction},
                )
            )
            for cache in ("auto", "off")
        }
        found = facts(engines["auto"], options)
        print(json.dumps(found, indent=2), flush=True)
        check_agreement(engines, words, options.dtype)
        few = {"queries": SPARE_TEXTS, "passages": SPARE_TEXTS // 4} if device == "cpu" else {}
        rounds: dict[str, list[dict[str, Run]]] = {}
        # Passages first: for some seconds after a query an engine on a GPU keeps batches short.
        for figure in ("passages", "queries"):
            warm_up = argparse.Namespace(**{**vars(options), **few})
            for number in range(-WARM_UP_ROUNDS, 0):
                one_round(figure, engines, words, number, warm_up)
            rounds[figure] = []
            for number in range(options.rounds):
                rounds[figure].append(one_round(figure, engines, words, number, options))
        print(table(rounds, device), flush=True)
    raw = {
        figure: [{name: vars(run) for name, run in one.items()} for one in found]
        for figure, found in rounds.items()
    }
    return {**found, "rounds": raw}


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="four layers and few texts")
    parser.add_argument("--out", type=Path, help="a JSON file for the raw figures")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.queries, options.passages, options.rounds = 4, 200, 50, 3
    started_s = time.perf_counter()
    found = contest(options)
    print(f"{time.perf_counter() - started_s:.0f} s in all")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
