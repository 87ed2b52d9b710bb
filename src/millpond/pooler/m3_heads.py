"""`M3Pooler`: token rows to what bge-m3's heads make of them, a row for each token.

The weight of a token is `relu(sparse_linear)`, its vector `colbert_linear`, scaled to unit length;
the first token has none, and in its place stands the text's dense vector (Chen et al. 2024, "BGE
M3-Embedding", section 3.1; FlagEmbedding's `BGEM3FlagModel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.kinds.bge_m3 import COLBERT, DENSE, SPARSE, SPARSE_FILE, TOKENS
from ..checkpoint.weights import read_linear
from ..errors import InvalidCheckpoint
from .modules import ModuleContext, Step, normalizer, product
from .pooler import Pooler

__all__ = ["M3Pooler"]


@dataclass(frozen=True, kw_only=True, eq=False)
class M3Pooler:
    """Rows float32 `[tokens, dimension]` of the heads that are there, side by side:

    vector (`TOKENS`, or of the first token `DENSE`) | weight (`SPARSE`), token id
    """

    vectors: Step | None
    weights: Step | None
    dense: Pooler | None
    width: int
    """Of the vectors."""
    ignored: Tensor
    """Ids of tokens whose weight is 0, int64."""
    vocabulary: int

    keeps_rows = True
    excludes_prompt = False
    reads_last_token_only = False

    @classmethod
    def load(
        cls,
        folder: Path,
        gives: Sequence[str],
        place: ModuleContext,
        *,
        dense: Pooler | None,
        ignored: Sequence[int],
        vocabulary: int,
    ) -> M3Pooler:
        """Read the heads in a folder. Raises `InvalidCheckpoint`."""
        vectors = weights = None
        width = 0
        if TOKENS in gives:
            project, width = _head(folder / COLBERT, place)
            scale = normalizer(place)
            vectors = lambda rows: scale(project(rows))  # noqa: E731
        if SPARSE in gives:
            weigh, ones = _head(folder / SPARSE_FILE, place)
            if ones != 1:
                raise InvalidCheckpoint(f"{folder / SPARSE_FILE}: it gives {ones} weights a token")
            weights = lambda rows: weigh(rows).relu()  # noqa: E731
        if DENSE in gives:
            assert dense is not None
            width = max(width, dense.dimension)
        return cls(
            vectors=vectors,
            weights=weights,
            dense=dense,
            width=width,
            vocabulary=vocabulary,
            ignored=torch.tensor(ignored, dtype=torch.int64, device=place.device),
        )

    @property
    def is_sparse(self) -> bool:
        """Whether a row is a token's id and weight alone."""
        return self.width == 0

    @property
    def dimension(self) -> int:
        """Numbers in a row, or dimensions of a sparse vector."""
        return self.vocabulary if self.is_sparse else self._columns

    @property
    def _columns(self) -> int:
        return self.width + (0 if self.weights is None else 2)

    @torch.inference_mode()
    def __call__(
        self,
        hidden: Tensor,
        starts: Tensor,
        lengths: Tensor,
        prompt_lengths: Tensor | None,
        kept: Tensor,
        ids: Tensor,
    ) -> Tensor:
        """The rows of the tokens that are `kept`, of hidden states and ids by place."""
        rows = hidden[kept].float()
        found = rows.new_zeros(len(rows), self._columns)
        if self.vectors is not None:
            vectors = self.vectors(rows)
            found[:, : vectors.shape[1]] = vectors
        if self.weights is not None:
            of_rows = ids[kept]
            weights = self.weights(rows)[:, 0]
            found[:, self.width] = of_rows.float()  # which holds the ids of any vocabulary
            found[:, self.width + 1] = weights.masked_fill(torch.isin(of_rows, self.ignored), 0)
        if self.dense is not None:
            firsts = torch.searchsorted(kept, starts)
            vectors = self.dense(hidden, starts, lengths, prompt_lengths)
            found[firsts, : self.width] = 0
            found[firsts, : vectors.shape[1]] = vectors
        return found

    def __repr__(self) -> str:
        return f"M3Pooler(dimension={self.dimension}, dense={self.dense!r})"


def _head(path: Path, place: ModuleContext) -> tuple[Step, int]:
    """A linear layer, and how many numbers it gives."""
    weight, bias = (each.to(device=place.device, dtype=torch.float32) for each in read_linear(path))
    if weight.shape[1] != place.width:
        raise InvalidCheckpoint(
            f"{path}: it takes {weight.shape[1]} numbers, and hidden states have {place.width}"
        )
    return product(weight, bias, batch_invariant=place.batch_invariant), len(weight)
