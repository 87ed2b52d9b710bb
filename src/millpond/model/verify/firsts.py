"""Whether a last layer that runs for first tokens alone gives what it gives them among all.

That is most of a layer less for a model of which nothing else is read: embedders that pool the
first token, and most rerankers.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch.nn.functional import pad

from ...attention.packed import PackedSequences
from ...cpu.openmp import threads_for_check
from ...cpu.row_buckets import whole_rows
from ...errors import first_line
from ...layers.cpu.encoder import FusedEncoder
from ...layers.cpu.linear import has_invariant_products
from ...layers.replace import probe_rows
from ...pooler.pooler import Pooler
from ..transformer import Transformer
from .execution import disagreement

__all__ = ["verify_firsts"]

logger = logging.getLogger("millpond")

# Two neighbours are alike; the longest have several tiles of queries.
LENGTHS = (1, 5, 16, 23, 40, 40, 75, 130, 200, 260)


@torch.inference_mode()
def verify_firsts(transformer: Transformer, head: Pooler) -> None:
    """Let the last layer run for first tokens alone, where the head reads them and no others.

    Their bits have to be the same, where a row's bits do not depend on the number of rows.
    """
    encoder = transformer.fused
    if not isinstance(encoder, FusedEncoder) or not head.reads_first_token_only:
        return
    lengths = np.array(LENGTHS, dtype=np.int64)
    sequences = PackedSequences.of(lengths)
    starts = torch.from_numpy(np.cumsum(lengths) - lengths)
    places = pad(starts, (0, whole_rows(len(starts)) - len(starts)))
    with threads_for_check(transformer.model, sequences.total):
        rows = probe_rows(sequences.total, transformer.width, dtype=transformer.dtype)
        try:
            expected = encoder.last_layer(rows, sequences)[starts]
            found = encoder.last_layer(rows, sequences, places)[: len(starts)]
        except Exception as error:  # an operator that is not there, or not for such rows
            logger.debug("the last layer runs for all tokens: %s", first_line(error))
            return
        agrees = torch.equal(found, expected)
        if not agrees and not has_invariant_products(transformer.model):
            agrees = disagreement([found], [expected]) is None
    transformer.gives_firsts = agrees
