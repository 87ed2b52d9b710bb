"""`KeptTokens`: which tokens of a text have a vector in the result, by their ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..checkpoint.kinds.bge_m3 import SPARSE, TOKENS
from ..checkpoint.modules import Module
from ..tokenization.tokenizer import TextTokenizer

__all__ = ["KeptTokens"]

logger = logging.getLogger("millpond")

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """Which tokens are kept; not those that are `skipped`, or of some ids `only`."""

    skipped: Ids | None = None
    only: Ids | None = None
    skips_first: bool = False
    """Of each text."""

    @classmethod
    def of(cls, modules: Sequence[Module], tokenizer: TextTokenizer) -> KeptTokens:
        """As a route's modules say."""
        heads = [module.options["gives"] for module in modules if module.kind == "M3Heads"]
        if heads:  # with all that bge-m3 gives, every token has a vector or a weight
            gives = tuple(heads[0])
            empty = sorted(tokenizer.empty_of_meaning) if gives == (SPARSE,) else ()
            return cls(skipped=_ids(empty), skips_first=gives == (TOKENS,))
        masks = [module.options for module in modules if module.kind == "MultiVectorMask"]
        if not masks:
            return cls()
        found = {word: tokenizer.known_id(word) for word in masks[0]["skip_words"]}
        unknown = [word for word, token in found.items() if token is None]
        if unknown:
            logger.info("not skipped, since they are no tokens: %s", " ".join(unknown))
        skipped = [token for token in found.values() if token is not None]
        return cls(_ids(skipped), _ids(masks[0]["kept_ids"]))

    def places(self, ids: Ids, lengths: Ids) -> tuple[Ids, Ids]:
        """Of texts end to end: the places of the tokens that are kept, and how many each keeps."""
        kept = np.ones(len(ids), dtype=np.bool_)
        if self.skipped is not None:
            kept &= ~np.isin(ids, self.skipped)
        if self.only is not None:
            kept &= np.isin(ids, self.only)
        if self.skips_first:
            kept[np.cumsum(lengths) - lengths] = False
        before, ends = np.concatenate(([0], np.cumsum(kept))), np.cumsum(lengths)
        return np.flatnonzero(kept), before[ends] - before[ends - lengths]


def _ids(ids: Sequence[int]) -> Ids | None:
    return np.array(sorted(ids), dtype=np.int64) if ids else None
