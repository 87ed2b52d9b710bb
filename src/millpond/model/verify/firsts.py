"""Whether a last layer that runs for first tokens alone gives what it gives them among all.

That is most of a layer less for a model of which nothing else is read: embedders that pool the
first token, and most rerankers.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...attention.compiled import without_loading_kernels
from ...attention.packed import PackedSequences
from ...cpu.openmp import threads_for_check
from ...cpu.row_buckets import whole_rows
from ...errors import first_line
from ...layers.cpu.encoder import FusedEncoder
from ...layers.cpu.encoder_layer import FusedLayer
from ...layers.cpu.linear import has_invariant_products
from ...layers.replace import probe_rows
from ...pooler.pooler import Pooler
from ..transformer import Transformer
from .execution import disagreement

__all__ = ["verify_firsts"]

logger = logging.getLogger("millpond")

LENGTHS = (1, 5, 16, 40, 40, 75)  # two neighbours are alike
LONG_LENGTHS = (200, 300, 800)  # which are attended in other tiles; products know no texts


@torch.inference_mode()
def verify_firsts(transformer: Transformer, head: Pooler) -> None:
    """Let the last layer run for first tokens alone, where the head reads them and no others.

    Their bits have to be the same, where a row's bits do not depend on the number of rows.
    """
    encoder = transformer.fused
    if not isinstance(encoder, FusedEncoder) or not head.reads_first_token_only:
        return
    layer, width, dtype = encoder.layers[-1], transformer.width, transformer.dtype
    most = transformer.max_positions or max(LONG_LENGTHS)
    with without_loading_kernels(), threads_for_check(transformer.model, sum(LENGTHS)):
        rows = probe_rows(sum(LENGTHS), width, dtype=dtype)
        joined = probe_rows(max(LONG_LENGTHS), 3 * width, dtype=dtype)
        try:
            found, expected = _after(layer, rows)
            agrees = all(_attends_alike(layer, joined[:n]) for n in LONG_LENGTHS if n <= most)
        except Exception as error:  # an operator that is not there, or not for such rows
            logger.debug("the last layer runs for all tokens: %s", first_line(error))
            return
        if not torch.equal(found, expected):
            by_rounding = not has_invariant_products(transformer.model)
            agrees &= by_rounding and disagreement([found], [expected]) is None
    transformer.gives_firsts = agrees


def _after(layer: FusedLayer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """First tokens after a layer, alone and among all, `[texts, width]`."""
    lengths = np.array(LENGTHS, dtype=np.int64)
    sequences = PackedSequences.of(lengths)
    starts = torch.from_numpy(np.cumsum(lengths) - lengths)
    places = pad(starts, (0, whole_rows(len(starts)) - len(starts)))
    found = layer.firsts(rows, sequences, places)[: len(starts)]
    return found, layer.packed(rows, sequences)[starts]


def _attends_alike(layer: FusedLayer, joined: Tensor) -> bool:
    """Whether the first token of one text attends alone as it does among all."""
    sequences = PackedSequences.of(np.array([len(joined)]))
    first = torch.zeros(1, dtype=torch.int64)
    expected = layer.attend(joined, sequences, layer.head_size, layer.scaling)[:1]
    return torch.equal(layer.attend_firsts(joined, sequences, first), expected)
