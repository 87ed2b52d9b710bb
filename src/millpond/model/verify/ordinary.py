"""What models are checked with at load: ordinary token ids, and ordinary texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import UnsupportedModel
from ...pair import Pair
from ...tokenization.pairs import PairTokenizer
from ...tokenization.tokenizer import TextTokenizer

__all__ = ["ordinary_ids", "ordinary_texts"]

MOST_ENGLISH_TOKENS = 64

ENGLISH = (
    "The mill stands beside a pond, and its wheel turns as long as there is water.",
    "when can I buy bread?",
    "Embeddings are vectors that stand for texts: what is alike in meaning is close in direction. "
    "A query is compared with millions of passages, and the closest ones are read first.",
    "grain",
    "In 1887 the old stones were replaced by rollers of steel, which grind finer, cost less to "
    "keep and, according to a report of the time, doubled what was sold within three years.",
    "def open(path: str, mode: str = 'r') -> File",
)
"""Texts as they come, of several kinds and lengths."""


def ordinary_ids(vocab_size: int, tokenizer: TextTokenizer) -> Sequence[int]:
    """Ids for the texts of the check at load: no special ones, which may change a model."""
    special = tokenizer.special_ids
    found = [i for i in range(min(vocab_size, 4096)) if i not in special]
    if not found:
        raise UnsupportedModel("the checkpoint's vocabulary has nothing but special tokens")
    return found


def ordinary_texts(tokenizer: TextTokenizer) -> list[list[int]]:
    """Token ids of some English, from one word to a paragraph, or of pairs of it."""
    if isinstance(tokenizer, PairTokenizer) and not tokenizer.reads_single_texts:
        pairs = [Pair(ENGLISH[1], text) for text in ENGLISH]
        tokens = tokenizer.encode_pairs(pairs, truncate="end")
    else:
        tokens = tokenizer.encode(
            ENGLISH, prompt="", task=None, truncate="end", max_length=MOST_ENGLISH_TOKENS
        )
    return [ids.tolist() for ids in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])]
