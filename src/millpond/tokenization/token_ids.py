"""Token ids that a model may be given: whole numbers, and rows of its table of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidTokenIds

__all__ = ["Ids", "TokenizedTexts", "checked_ids", "require_known"]

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedTexts:
    """Token ids of several texts, one text after the other."""

    ids: Ids
    """int32 [total]."""
    lengths: Ids
    """int32 [n]: tokens of each text, after truncation; they add up to `total`."""
    truncated: npt.NDArray[np.bool_]
    """bool [n]: whether tokens of the text were left out."""


def checked_ids(row: npt.NDArray[Any] | Sequence[int], index: int, vocab_size: int) -> Ids:
    """The ids of a caller's text, int32 [n], n above 0. Raises `InvalidTokenIds` with its index."""
    try:
        ids = np.asarray(row)
    except (ValueError, OverflowError):
        ids = np.empty((0, 0))
    if ids.ndim == 1 and len(ids) == 0:
        raise InvalidTokenIds("it is a list of no token ids", index=index)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidTokenIds(
            "it is not a flat list of whole numbers, as token ids are", index=index
        )
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab_size:
        raise InvalidTokenIds(
            f"it has the token id {lowest if lowest < 0 else highest}; "
            f"this model's ids are 0 to {vocab_size - 1}",
            index=index,
        )
    return ids.astype(np.int32)


def require_known(ids: Ids, lengths: Ids, vocab_size: int) -> None:
    """Raise `InvalidTokenIds` for a tokenizer's id that the model's table has no row for.

    `ids` are of several texts, `lengths` of each.
    """
    unknown = ids >= vocab_size
    if unknown.any():
        at = int(unknown.argmax())
        raise InvalidTokenIds(
            f"it contains a token (id {ids[at]}) that the tokenizer has "
            f"and the model's table of {vocab_size} rows has not; the checkpoint's "
            "tokenizer and weights do not fit together",
            index=int(np.searchsorted(np.cumsum(lengths), at, side="right")),
        )
