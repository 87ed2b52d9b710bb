"""What a skilled user writes around an inference runtime: sort by length, fill a token budget.

It knows no runtime: that is a function from padded token ids and their mask to vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .peer import Embedder

MAX_TOKENS = 512
Inputs = tuple[np.ndarray, np.ndarray]
"""Token ids and attention mask, int64 `[n, length]`."""


class ByHand(Embedder):
    """`run` maps the inputs of batches to their vectors, in order."""

    def __init__(
        self,
        folder: Path,
        run: Callable[[Iterable[Inputs]], Iterable[np.ndarray]],
        lone: Callable[[Inputs], np.ndarray],
        *,
        batch_tokens: int,
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._run = run
        self._lone = lone
        self._batch_tokens = batch_tokens
        self._counts = (0, 0)

    def embed(self, texts: list[str]) -> Any:
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda text: -len(ids[text]))
        batches = list(self._batches(ids, order))
        vectors = np.concatenate(list(self._run(padded(ids, batch) for batch in batches)))
        result = np.empty_like(vectors)
        result[order] = vectors
        computed = sum(len(batch) * len(ids[batch[0]]) for batch in batches)
        self._counts = (self._counts[0] + sum(map(len, ids)), self._counts[1] + computed)
        return result

    def query(self, text: str) -> Any:
        return self._lone(padded([self._tokenizer.encode(text).ids], [0]))[0]

    def tokens(self) -> tuple[int, int] | None:
        return self._counts

    def _batches(self, ids: list[list[int]], order: list[int]) -> Iterator[list[int]]:
        """Neighbours in `order` whose padded size stays within the budget."""
        batch: list[int] = []
        for text in order:
            if batch and (len(batch) + 1) * len(ids[batch[0]]) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch


def padded(ids: list[list[int]], batch: list[int]) -> Inputs:
    """The ids of a batch, zeros behind the shorter ones."""
    longest = max(len(ids[text]) for text in batch)
    rows = np.zeros((len(batch), longest), np.int64)
    mask = np.zeros_like(rows)
    for row, text in enumerate(batch):
        rows[row, : len(ids[text])] = ids[text]
        mask[row, : len(ids[text])] = 1
    return rows, mask
