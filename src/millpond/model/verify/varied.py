"""Many short and long English texts, for what has to hold of texts that no check has seen.

Whole texts of several kinds, and cuts of them down to every single word: a short text has few
tokens over which errors could even out, so the worst texts are among those.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...pair import Pair
from ...tokenization.pairs import PairTokenizer
from ...tokenization.tokenizer import TextTokenizer

__all__ = ["varied_texts"]

MOST_TOKENS = 256
CUTS = (1, 2, 4, 9)  # words
TOGETHER = (3, 9)  # texts

KINDS = (
    "What is the capital of Portugal, and how many people live there?",
    "how do I reset my password",
    "The committee will meet again on Tuesday to decide whether the bridge should be closed.",
    "Return True if the given path refers to an existing file; otherwise return False.",
    "cheap flights from Boston to Denver in March",
    "Water boils at 100 degrees Celsius at sea level, but at 93 on a mountain of 2,000 metres.",
    "She said that she had never seen anything like it before.",
    "To be installed on a server, the package needs Python 3.11 or newer and 2 GB of memory.",
    "Error: connection refused (code 111) while reading response header from upstream",
    "Photosynthesis turns carbon dioxide and light into sugar and oxygen.",
    "best wireless headphones under $50",
    "If a value is not of the expected type, an exception is raised and nothing is changed.",
    "The patient was given 20 mg daily for six weeks, with no side effects worth reporting.",
    "OK, thanks! See you then.",
    "for i in range(10): print(i, end=' ')",
    "Quarterly revenue rose by 12 % to $3.4 billion, more than analysts had expected.",
    "Depending on the weather, the match may be moved to Sunday afternoon.",
    "Das Museum ist montags geschlossen. Le musée est fermé le lundi.",
    "SELECT name, price FROM products WHERE stock > 0 ORDER BY price DESC",
    "This agreement shall be governed by the laws of the State of New York.",
    "Add the onions, stir for five minutes, and season with salt, pepper and a little lemon.",
    "deprecated since version 2.1: use the other function instead",
    "Who wrote the first book about it, when was it printed, and why was it forgotten?",
    "The second edition, which is one of the rarest, keeps the maps and none of the notes.",
    "It does not matter which of them you use, or how; both accept the same arguments.",
    "User #4821 logged in from 10.0.0.7 at 14:03:55 UTC",
    "Two trains leave at the same time, thus they meet exactly half way between the towns.",
    "Great product, arrived quickly, but the colour is not as shown. Three stars.",
)


def varied_texts(tokenizer: TextTokenizer) -> list[list[int]]:
    """Token ids of some hundred texts, or of pairs of them, of up to `MOST_TOKENS`."""
    texts = list(dict.fromkeys(_texts()))
    if isinstance(tokenizer, PairTokenizer) and not tokenizer.reads_single_texts:
        pairs = [Pair(KINDS[i % len(KINDS)], text) for i, text in enumerate(texts)]
        tokens = tokenizer.encode_pairs(pairs, truncate="end")
    else:
        most = min(MOST_TOKENS, tokenizer.max_length or MOST_TOKENS)
        tokens = tokenizer.encode(texts, prompt="", task=None, truncate="end", max_length=most)
    return [ids.tolist() for ids in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])]


def _texts() -> Iterator[str]:
    for size in CUTS:
        for text in KINDS:
            words = text.split()
            for start in range(0, len(words), size):
                yield " ".join(words[start : start + size])
    yield from KINDS
    for count in TOGETHER:
        for first in range(len(KINDS) - count + 1):
            yield " ".join(KINDS[first : first + count])
