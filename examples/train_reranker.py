"""Train a small reranker on the spot, in less than two minutes on two cores, and rank with it.

    python examples/train_reranker.py
    python examples/train_reranker.py --pairs 1200 --folder my-reranker    # sooner, worse, and kept

A query is the first sentence of a docstring of Python's standard library, and what it asks for are
the words after it. all-MiniLM-L6-v2 gets a head for scores and learns to tell those from the words
of other docstrings; then held-out queries, of other modules, rank twenty documents each. Printed is
the mean reciprocal rank of what is asked for: of this reranker, of BM25, and by chance.
"""

from __future__ import annotations

import argparse
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from docstrings import MODEL, documentation
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from millpond import Engine

# A sentence, and what follows it.
FIRST_SENTENCE = re.compile(r"(.{20,}?[.!?])\s+(?=[A-Z])(.{60,})")
DOCUMENT_WORDS = 20
CANDIDATES = 20  # of a query, one of which it asks for
OTHERS = 2  # documents that a query's own is told from in training
QUERIES_A_STEP = 8
TOKENS = 48  # of a pair in training
PAIRS = 6000
RATE, HEAD_RATE, WARM_UP = 3e-4, 1e-3, 0.1
FROZEN_LAYERS = 2  # the lowest, and the embeddings: what they know of words is good as it is

Scores = npt.NDArray[np.float32]


class Example(NamedTuple):
    query: str
    document: str
    """What a search for the query is to find."""
    module: str


def examples() -> list[Example]:
    """Docstrings of more than one sentence, each first sentence once."""
    found: dict[str, Example] = {}
    for title, docstring in documentation():
        match = FIRST_SENTENCE.match(" ".join(docstring.split()))
        if match is not None:
            query, rest = match.groups()
            document = " ".join(rest.split()[:DOCUMENT_WORDS])
            found.setdefault(query, Example(query, document, title.partition(".")[0]))
    return list(found.values())


def is_held_out(example: Example) -> bool:
    """Every fifth module, so that nothing of what is ranked was trained on."""
    return zlib.crc32(example.module.encode()) % 5 == 0


def train(checkpoint: Path, taught: Sequence[Example], pairs: int, dtype: torch.dtype) -> Any:
    """A language model with a new head after so many pairs, and its tokenizer."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1).train()
    encoder = model.base_model
    for part in (encoder.embeddings, *encoder.encoder.layer[:FROZEN_LAYERS]):
        part.requires_grad_(False)
    steps = max(1, pairs // (QUERIES_A_STEP * (1 + OTHERS)))
    heads = [*encoder.pooler.parameters(), *model.classifier.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": encoder.encoder.parameters(), "lr": RATE}, {"params": heads, "lr": HEAD_RATE}]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (WARM_UP * steps)) * (1 - step / steps)
    )
    for chosen in islice(batches(len(taught), random), steps):
        inputs = tokenizer(
            drawn_pairs(taught, chosen, random),
            truncation=True,
            max_length=TOKENS,
            padding=True,
            return_tensors="pt",
        )
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(**inputs).logits
        # The right document of each query is the first of some.
        scores = logits.float().view(QUERIES_A_STEP, 1 + OTHERS)
        loss: Any = cross_entropy(scores, torch.zeros(QUERIES_A_STEP, dtype=torch.int64))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, tokenizer


def batches(count: int, random: np.random.Generator) -> Iterator[list[int]]:
    """All examples in a random order, again and again, those of a step at a time."""
    while True:
        order = random.permutation(count).tolist()
        for start in range(0, count - QUERIES_A_STEP + 1, QUERIES_A_STEP):
            yield order[start : start + QUERIES_A_STEP]


def drawn_pairs(
    taught: Sequence[Example], chosen: Sequence[int], random: np.random.Generator
) -> list[tuple[str, str]]:
    """Each query with its document, and then with others."""
    return [
        (taught[place].query, taught[other].document)
        for place in chosen
        for other in (place, *others_than(place, len(taught), OTHERS, random))
    ]


def others_than(place: int, count: int, wanted: int, random: np.random.Generator) -> list[int]:
    drawn = random.choice(count - 1, wanted, replace=False)
    return [int(other) for other in drawn + (drawn >= place)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


class BM25:
    """By Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009)."""

    def __init__(self, documents: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        self._counts = [Counter(words(document)) for document in documents]
        self._holding = Counter(word for count in self._counts for word in count)
        lengths = np.array([count.total() for count in self._counts])
        self._k1, self._normal = k1, k1 * (1 - b + b * lengths / lengths.mean())

    def scores(self, query: str) -> Scores:
        """Of each document."""
        found = np.zeros(len(self._counts), np.float32)
        for word in set(words(query)):
            held = np.array([count[word] for count in self._counts])
            holding = self._holding[word]
            rarity = math.log(1 + (len(held) - holding + 0.5) / (holding + 0.5))
            found += rarity * held * (self._k1 + 1) / (held + self._normal)
        return found


def reciprocal_rank(scores: Scores) -> float:
    """Of the first document, behind those that score as high."""
    return 1 / (1 + int((scores[1:] >= scores[0]).sum()))


class Ranks(NamedTuple):
    """Mean reciprocal ranks."""

    reranker: float
    bm25: float
    chance: float


def compare(reranker: Engine, asked: Sequence[Example], limit: int | None) -> Ranks:
    """Queries with the documents they ask for and others, drawn once for all."""
    random, by_words = np.random.default_rng(0), BM25([example.document for example in asked])
    found = []
    for place, example in enumerate(asked[:limit]):
        places = [place, *others_than(place, len(asked), CANDIDATES - 1, random)]
        ranked = reranker.rank(example.query, [asked[other].document for other in places])
        scores = np.array([one.score for one in sorted(ranked, key=lambda one: one.index)])
        theirs = by_words.scores(example.query)[places]
        found.append((reciprocal_rank(scores), reciprocal_rank(theirs)))
    reranked, searched = np.mean(found, axis=0)
    chance = np.mean(1 / np.arange(1, CANDIDATES + 1))
    return Ranks(float(reranked), float(searched), float(chance))


def main(arguments: Sequence[str] | None = None) -> Ranks:
    parser = argparse.ArgumentParser(description="Train a small reranker and rank with it.")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs to train on")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is kept")
    parser.add_argument("--limit", type=int, help="rank for only so many queries")
    options = parser.parse_args(arguments)

    known = examples()
    taught = [example for example in known if not is_held_out(example)]
    asked = [example for example in known if is_held_out(example)]
    print(f"{len(taught):,} examples to learn from, {len(asked):,} of other modules held out")
    with TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        with Engine(MODEL) as embedder:
            path, dtype = embedder.info().model.path, embedder.info().dtype
        started = time.perf_counter()
        # The engine's precision is bfloat16 on a processor that has it.
        model, tokenizer = train(path, taught, options.pairs, getattr(torch, dtype))
        print(f"{options.pairs:,} pairs in {time.perf_counter() - started:.0f} s")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with Engine(folder) as reranker:
            ranks = compare(reranker, asked, options.limit)
    print(f"mean reciprocal rank among {CANDIDATES} documents")
    for name, value in zip(("this reranker", "BM25", "by chance"), ranks, strict=True):
        print(f"  {name:<14} {value:.3f}")
    return ranks


if __name__ == "__main__":
    main()
