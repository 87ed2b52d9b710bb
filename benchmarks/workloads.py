"""Real English text cut to the lengths people embed, the same on every machine with this Python.

The words are those of the standard library's docstrings; the lengths are drawn from a seeded
log-normal distribution, in tokens of about 0.75 words.
"""

from __future__ import annotations

import random
import sys
from math import exp, log
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from docstrings import gather_passages

WORDS_PER_TOKEN = 0.7
P95 = 1.645  # standard deviations


def queries(count: int, seed: int = 1) -> list[str]:
    """Short texts: a median of 9 tokens, 25 at the 95th percentile."""
    return _texts(count, median=9, p95=25, seed=seed)


def passages(count: int, seed: int = 2) -> list[str]:
    """Paragraphs: a median of 70 tokens, 160 at the 95th percentile."""
    return _texts(count, median=70, p95=160, seed=seed)


def _texts(count: int, *, median: float, p95: float, seed: int) -> list[str]:
    words = [word for passage in gather_passages() for word in passage.text.split()]
    rng = random.Random(seed)
    spread = log(p95 / median) / P95
    texts = []
    for _ in range(count):
        length = max(1, round(median * exp(rng.gauss(0, spread)) * WORDS_PER_TOKEN))
        start = rng.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts
