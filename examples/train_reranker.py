"""Train a small reranker on the standard library's docstrings, in less than a minute on a CPU.

    python examples/train_reranker.py folder
    millpond rank "print a calendar" notes.txt --model folder

It begins with the weights of all-MiniLM-L6-v2. The first line of a docstring is a query and the
rest its document; other documents that an embedder takes for near ones are what it must not choose.
A reranker from the Hugging Face hub, such as cross-encoder/ms-marco-MiniLM-L6-v2, is much better.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from docstrings import gather_passages
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from millpond import Engine

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
EXAMPLES = 800
STEPS = 60
BATCH = 8  # queries, each with its document and as many others
OTHERS = 2
NEAREST = 20  # documents by the embedder, of which the others are some
MAX_LENGTH = 64
TRAINED_LAYERS = 2  # the last of six
SHORTEST = 30  # characters of a query, and of a document


class Example(NamedTuple):
    query: str
    document: str
    others: Sequence[str]


def gather_examples(limit: int = EXAMPLES) -> list[Example]:
    """Queries with their documents, and documents near to them that are not theirs."""
    parts = [passage.text.strip().partition("\n") for passage in gather_passages()]
    pairs = [(query, rest.strip()) for query, _, rest in parts if len(query) >= SHORTEST]
    pairs = [(query, rest) for query, rest in pairs if len(rest) >= SHORTEST]
    random.Random(0).shuffle(pairs)
    queries, documents = zip(*pairs[:limit], strict=True)
    with Engine.shared(MODEL) as engine:
        scores = engine.embed(list(queries)) @ engine.embed(list(documents)).T
    np.fill_diagonal(scores, -1)
    nearest = np.argsort(-scores)[:, :NEAREST]
    return [
        Example(query, document, [documents[place] for place in row])
        for query, document, row in zip(queries, documents, nearest, strict=True)
    ]


def loss_of(model: Any, tokenizer: Any, examples: Sequence[Example], chance: random.Random) -> Any:
    """How far the document of each query is from being chosen among others."""
    texts = [(one.document, *chance.sample(one.others, OTHERS)) for one in examples]
    pairs = [(one.query, text) for one, row in zip(examples, texts, strict=True) for text in row]
    queries, documents = map(list, zip(*pairs, strict=True))
    ids = tokenizer(
        queries,
        documents,
        padding=True,
        truncation="longest_first",
        max_length=MAX_LENGTH,
        return_tensors="pt",
    )
    logits = model(**ids).logits.view(len(examples), 1 + OTHERS)
    right = torch.zeros(len(examples), dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits, right)


def train(folder: str | Path, examples: Sequence[Example], *, steps: int = STEPS) -> Path:
    """Save a reranker in the folder."""
    with Engine.shared(MODEL) as engine:
        start = engine.info().model.path
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    model.base_model.requires_grad_(False)
    model.base_model.encoder.layer[-TRAINED_LAYERS:].requires_grad_(True)
    model.base_model.pooler.requires_grad_(True)
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps)
    chance = random.Random(1)
    for _ in range(steps):
        loss = loss_of(model, tokenizer, chance.sample(list(examples), BATCH), chance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def first_places(engine: Engine, examples: Sequence[Example]) -> float:
    """Of how many queries the own document is the best among `NEAREST` others."""
    best = [engine.rank(one.query, [*one.others, one.document], top_n=1) for one in examples]
    return float(np.mean([found[0].index == NEAREST for found in best]))


def main(folder: str) -> None:
    examples = gather_examples()
    held_out, rest = examples[:100], examples[100:]
    train(folder, rest)
    with Engine(folder, max_length=MAX_LENGTH) as engine:
        share = first_places(engine, held_out)
    print(f"{folder}: the right document is first of {NEAREST + 1} for {share:.0%} of queries")


if __name__ == "__main__":
    main(sys.argv[1])
