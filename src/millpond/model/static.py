"""`StaticEmbeddings`: a text's vector is the mean of its tokens' rows in a table.

It stands in the place of a transformer and its pooling. It knows no tokenizer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..checkpoint.modules import Module
from ..checkpoint.weights import read_weights
from ..errors import InvalidCheckpoint

__all__ = ["StaticEmbeddings"]


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
