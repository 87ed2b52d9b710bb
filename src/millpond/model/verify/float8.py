"""Which parts of a model run in float8: those that it bears, found by ordinary texts at load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from math import inf, isfinite

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...errors import InvalidOption
from ...layers.cuda.packed.layer_stack import LayerStack, Part
from ...layers.cuda.packed.model import PackedDecoder
from ..transformer import Transformer
from .execution import last_layer, run_packed

__all__ = ["choose_parts", "use_float8"]

logger = logging.getLogger("millpond")

MOST_LOSS = 0.0004
"""What the cosine of a text's vector may be below 1, in the mean, by one layer in float8."""
LEAST_COSINE = 0.99  # of vectors to those in half precision, logged if less


@torch.inference_mode()
def use_float8(transformer: Transformer, texts: Sequence[list[int]]) -> None:
    """Run the layers of a packed model in float8, but for those that lose too much.

    `texts` are token ids as they come. Raises `InvalidOption` for a model that float8 is not for.
    """
    forward = transformer.packed_forward
    if forward is None:
        raise InvalidOption(
            "dtype='fp8' is for encoders like BERT and decoders like Llama that run packed, and "
            "this model is of another kind; leave it at 'auto'"
        )
    reads_last = isinstance(forward, PackedDecoder)

    def run() -> list[Tensor]:
        return [last_layer(rows).float() for rows in run_packed(transformer, list(texts))]

    half = run()
    try:
        parts = choose_parts(forward.layers, lambda: _loss(run(), half, last=reads_last))
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
    found, own = torch.cat(run()), torch.cat(half)
    transformer.quantisation_error = float((found - own).norm() / own.norm())
    forward.layers.release()
    if (cosine := 1 - _loss(run(), half, last=reads_last)) < LEAST_COSINE:
        logger.warning(
            "in float8 the vectors of this model have a cosine of %.3f to those in half "
            "precision; dtype='auto' keeps them",
            cosine,
        )
    logger.info("%d of %d parts of the layers run in float8", len(parts), 2 * forward.layers.packed)


def choose_parts(layers: LayerStack, loss: Callable[[], float]) -> set[Part]:
    """Put into float8 what loses little by `loss()`, of the layers as they are then.

    Each part is tried alone. Of a layer that loses more than `MOST_LOSS`, the part that loses most
    stays in half precision, or both.
    """
    alone = {part: _alone(layers, part, loss) for part in layers.parts()}
    chosen: set[Part] = set()
    for _, parts in groupby(alone, key=lambda part: part.layer):
        sums = accumulate(sorted((alone[part], part) for part in parts), _add)
        chosen |= {part for total, part in sums if total <= MOST_LOSS}
    layers.use_float8(chosen)
    return chosen


def _add(before: tuple[float, Part], following: tuple[float, Part]) -> tuple[float, Part]:
    return before[0] + following[0], following[1]


def _alone(layers: LayerStack, part: Part, loss: Callable[[], float]) -> float:
    layers.use_float8({part})
    found = loss()
    return found if isfinite(found) else inf


def _loss(found: list[Tensor], half: list[Tensor], *, last: bool) -> float:
    """1 less the mean cosine of texts, by their last token or by the mean of their tokens."""
    mine, own = (
        torch.stack([rows[-1] if last else rows.mean(dim=0) for rows in each])
        for each in (found, half)
    )
    return 1 - float(cosine_similarity(mine, own).mean())
