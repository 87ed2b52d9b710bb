"""Which parts of a model run in float8: as many as its worst text bears, found at load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...attention.packed import PackedSequences
from ...attention.varlen import uses_varlen
from ...errors import InvalidOption
from ...layers.cuda.packed.layer_stack import LayerStack, Part
from ..transformer import Transformer
from .execution import last_layer

__all__ = ["Reads", "choose_parts", "most_loss", "use_float8"]

logger = logging.getLogger("millpond")

Reads = Literal["first", "last", "mean"]
"""Which of a text's tokens its vector comes of: the mean is of all."""

LOSS_OF_A_LAYER, MOST_LOSS = 0.0003, 0.01
"""What the cosine of the worst text's vector to the one in half precision may be below 1 for each
layer, since every layer rounds, and for all parts together. Of 650 texts that were not among those
checked the worst lost up to a tenth more."""

SAVES = {"attention": 1.0, "feed_forward": 1.5}
"""Time that a weight in float8 saves, relative to each other. By parts of bge-base's, bge-large's
and Qwen3-0.6B's shapes on an H200: there are other kernels between the products of attention."""


@torch.inference_mode()
def use_float8(
    transformer: Transformer, texts: Sequence[list[int]], *, reads: Reads = "mean"
) -> None:
    """Run the parts of a packed model in float8, but for those that its vectors do not bear.

    `texts` are token ids as they come. Raises `InvalidOption` for a model that float8 is not for.
    """
    forward = transformer.packed_forward
    if forward is None:
        raise InvalidOption(
            "dtype='fp8' is for encoders like BERT and decoders like Llama that run packed, and "
            "this model is of another kind; leave it at 'auto'"
        )
    run, lengths = _runner(transformer, texts)
    half = run()
    expected = _vectors(half, lengths, reads)

    def loss() -> float:
        return float(1 - cosine_similarity(_vectors(run(), lengths, reads), expected).min())

    try:
        parts = choose_parts(forward.layers, loss)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InvalidOption(
            f"dtype='fp8': this model does not run in float8 here ({error}); leave it at 'auto'"
        ) from error
    if not parts:
        raise InvalidOption(
            "dtype='fp8': every layer of this model loses too much in float8; leave it at 'auto'"
        )
    transformer.quantisation_error = float((run() - half).norm() / half.norm())
    lost = loss()
    forward.layers.release()
    logger.info(
        "%d of %d parts of the layers run in float8; the worst of %d texts has a cosine of %.4f "
        "to half precision",
        *(len(parts), 2 * forward.layers.packed, len(texts), 1 - lost),
    )


def choose_parts(layers: LayerStack, loss: Callable[[], float]) -> set[Part]:
    """Put into float8 as many parts as lose no more than `most_loss` together.

    `loss()` is that of the layers as they are then. Those go first that lose the least for the time
    they save, each tried alone.
    """
    ordered, bearable = _by_price(layers, loss), most_loss(layers)

    def bears(count: int) -> bool:
        layers.use_float8(ordered[:count])
        return loss() <= bearable

    most, too_many = 0, len(ordered) + 1
    while too_many - most > 1:
        middle = (most + too_many) // 2
        if bears(middle):
            most = middle
        else:
            too_many = middle
    chosen = set(ordered[:most])
    layers.use_float8(chosen)
    return chosen


def most_loss(layers: LayerStack) -> float:
    """What these layers may lose together."""
    count = len({part.layer for part in layers.parts()})
    return min(MOST_LOSS, LOSS_OF_A_LAYER * count)


def _by_price(layers: LayerStack, loss: Callable[[], float]) -> list[Part]:
    """The parts by what each loses alone for the time it saves, without those that lose all."""
    prices = {}
    for part, weights in layers.parts().items():
        layers.use_float8({part})
        alone = loss()
        prices[part] = alone / (weights * SAVES[part.name]) if isfinite(alone) else inf
    return sorted((part for part in prices if prices[part] < inf), key=lambda part: prices[part])


def _runner(
    transformer: Transformer, texts: Sequence[list[int]]
) -> tuple[Callable[[], Tensor], Tensor]:
    """What gives the hidden states of all texts, float32 `[tokens, width]`, and their lengths."""
    device = transformer.device
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    edges = np.concatenate(([0], np.cumsum(lengths)))
    starts = np.repeat(edges[:-1], lengths)
    ids = torch.tensor([token for text in texts for token in text], device=device)
    positions = torch.from_numpy(np.arange(len(starts)) - starts).to(device)
    boundaries = None
    if uses_varlen(device, transformer.dtype):
        boundaries = torch.from_numpy(edges.astype(np.int32)).to(device)
    sequences = PackedSequences.of(lengths, boundaries=boundaries)

    def run() -> Tensor:
        return last_layer(transformer.packed(ids, positions, sequences)).float()

    return run, torch.from_numpy(lengths).to(device)


def _vectors(rows: Tensor, lengths: Tensor, reads: Reads) -> Tensor:
    """`[tokens, width]` to `[texts, width]`."""
    ends = lengths.cumsum(0)
    if reads == "first":
        return rows[ends - lengths]
    if reads == "last":
        return rows[ends - 1]
    texts = torch.repeat_interleave(torch.arange(len(lengths), device=rows.device), lengths)
    sums = rows.new_zeros(len(lengths), rows.shape[1]).index_add_(0, texts, rows)
    return sums / lengths[:, None]
