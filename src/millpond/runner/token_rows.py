"""`TokenRows`: what the token ids of a batch say beside the tokens: who is attended to, who stays.

It knows no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model.pooling_model import PoolingModel
from ..tokenization.query_fill import hidden_tokens, plain_ids
from .input_batch import InputBatch

__all__ = ["TokenRows"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The tokens of a batch, end to end."""

    ids: Ids
    hidden: npt.NDArray[np.bool_] | None
    """Which tokens no other attends to; None where there are none."""
    kept: Ids | None
    """The places of the tokens that have a vector in the result; None for a model that pools."""
    counts: Ids | None
    """Vectors of each text; None for a model that gives one a text."""

    @classmethod
    def of(cls, layout: InputBatch, pipeline: PoolingModel) -> TokenRows:
        """As the model that runs them reads them."""
        ids, hidden, kept, counts = layout.ids, None, None, None
        if pipeline.tokenizer.query_fill is not None:
            hidden, ids = hidden_tokens(ids), plain_ids(ids)
        if pipeline.head.keeps_rows:
            kept, counts = pipeline.kept_tokens.places(ids, layout.lengths)
        return cls(ids, hidden, kept, counts)

    def places_in(self, starts: Ids, lengths: Ids) -> Sequence[Ids]:
        """`kept` where texts begin at those rows; none where it is None."""
        if self.kept is None:
            return ()
        before = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        return (self.kept + before[self.kept],)
