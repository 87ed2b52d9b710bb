"""`Layout`: a planned batch as integers, in the order a forward pass takes them.

Longest texts first, so that neighbours are of equal length. It knows no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .scheduling.batch import Batch

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """The tokens of a batch end to end, and its texts, longest first."""

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    """Place in the batch of the *i*-th text here."""

    @classmethod
    def of(cls, batch: Batch) -> Layout:
        spans = [(s.chunk, s.start, s.stop) for s in batch.segments]
        ids = np.concatenate([c.ids[c.offsets[a] : c.offsets[b]] for c, a, b in spans])
        lengths = np.concatenate([c.lengths[a:b] for c, a, b in spans])
        prompts = np.repeat(
            [s.job.prompt_tokens for s in batch.segments], [s.texts for s in batch.segments]
        )
        order = np.argsort(-lengths, kind="stable")
        if len(spans) > 1:  # one span is sorted already
            ids = _gather(ids, lengths, order)
        return cls(ids.astype(np.int64), lengths[order], prompts[order].astype(np.int64), order)


def _gather(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    starts = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    targets = np.cumsum(lengths) - lengths
    return ids[np.repeat(starts - targets, lengths) + np.arange(len(ids))]
