"""A table in the place of a transformer and its pooling. It knows no tokenizer.

A text's vector is the mean of its tokens' rows (`StaticEmbeddings`), or has a weight for each token
that the text has (`SparseStaticEmbeddings`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..checkpoint.files import read_json_object
from ..checkpoint.modules import Module
from ..checkpoint.weights import read_weights
from ..errors import InvalidCheckpoint
from ..pooler.sparse import MOST_DIMENSIONS, SparseRows

__all__ = ["SparseStaticEmbeddings", "StaticEmbeddings"]


class StaticEmbeddings:
    """The table of a `StaticEmbedding` module, float32 [vocab_size, width]."""

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self.vocab_size, self.width = table.shape

    @classmethod
    def load(cls, module: Module, device: torch.device) -> StaticEmbeddings:
        """Reads both layouts: sentence-transformers' `embedding.weight`, and model2vec's
        `embeddings`, whose rows `mapping` (a row per token id) and `weights` (a factor per
        token id) may rearrange.

        Raises `InvalidCheckpoint` when the folder has neither.
        """
        weights = read_weights(module.path)
        if "embedding.weight" in weights:
            table = weights["embedding.weight"]
        elif "embeddings" in weights:
            table = _model2vec_table(weights)
        else:
            raise InvalidCheckpoint(
                f"{module.path}: its weights have neither 'embedding.weight' nor 'embeddings' but "
                f"{', '.join(sorted(weights)) or 'nothing'}"
            )
        if table.ndim != 2 or 0 in table.shape:
            raise InvalidCheckpoint(
                f"{module.path}: the table of embeddings has the shape {list(table.shape)}; "
                "it must be [tokens, widths]"
            )
        return cls(table.to(device=device, dtype=torch.float32).contiguous())

    def __repr__(self) -> str:
        return f"StaticEmbeddings(vocab_size={self.vocab_size}, width={self.width})"

    @torch.inference_mode()
    def __call__(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """The mean of each text's rows, float32 [n, width]; zeros for a text without tokens.

        `ids` is int64 [total], the texts one after the other; `starts` int64 [n] says where each
        begins and `lengths` int64 [n] how long it is, with nothing between them; ids after the
        last text are ignored. All are on the table's device.
        """
        if ids.numel() == 0 or len(starts) == 0:
            return self._table.new_zeros((len(starts), self.width))
        if ids.device.type == "cpu":
            assert torch.equal(starts, lengths.cumsum(0) - lengths)
        end = starts[-1:] + lengths[-1:]
        return embedding_bag(ids, self._table, torch.cat([starts, end]), mode="mean")[:-1]


def _model2vec_table(weights: dict[str, Tensor]) -> Tensor:
    table = weights["embeddings"]
    if "mapping" in weights:
        table = table[weights["mapping"].to(torch.int64)]
    if "weights" in weights:
        # The product is taken in the wider of both types and only then rounded.
        table = table.to(torch.promote_types(table.dtype, torch.float32))
        table = table * weights["weights"][:, None]
    return table


class SparseStaticEmbeddings:
    """The weights of a `SparseStaticEmbedding` module, float32 [vocab_size].

    A dimension of a text is a token that it has, once or several times, and the weight is the
    token's.
    """

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self.vocab_size = self.width = len(weights)

    @classmethod
    def load(
        cls,
        module: Module,
        device: torch.device,
        *,
        vocab_size: int,
        known_id: Callable[[str], int | None],
    ) -> SparseStaticEmbeddings:
        """From its weights, or from a JSON file that names tokens, whose ids `known_id` gives.

        Raises `InvalidCheckpoint` when the folder has neither.
        """
        named = module.options["weights"]
        if named is None:
            weights = read_weights(module.path).get("weight")
        else:
            weights = torch.zeros(vocab_size)
            for token, weight in read_json_object(module.path / named).items():
                place = known_id(token)
                if place is not None and place < vocab_size:
                    weights[place] = float(weight)
        if weights is None or weights.ndim != 1 or not 0 < len(weights) <= MOST_DIMENSIONS:
            raise InvalidCheckpoint(
                f"{module.path}: its weights have no vector 'weight' with a number for each token"
            )
        return cls(weights.to(device=device, dtype=torch.float32).contiguous())

    @torch.inference_mode()
    def __call__(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> SparseRows:
        """Of texts that stand one after the other in `ids`, as `StaticEmbeddings` takes them."""
        ids = ids[: int(lengths.sum())]
        owners = torch.repeat_interleave(torch.arange(len(lengths), device=ids.device), lengths)
        found = torch.unique(owners * self.vocab_size + ids)
        owners, tokens = found // self.vocab_size, found % self.vocab_size
        weights = self._weights[tokens]
        kept = weights != 0
        rows = torch.stack([tokens.float(), weights], dim=1)[kept]
        return SparseRows(rows, torch.bincount(owners[kept], minlength=len(lengths)))

    def __repr__(self) -> str:
        return f"SparseStaticEmbeddings(vocab_size={self.vocab_size})"
