"""Whether a peer's vectors are those of the reference: nobody is timed who gives others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .peer import Precision

MOST_DIFFERENCE = 1e-5  # of an element, between two ways to compute in float32
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.999, "int8": 0.99}


class Disagrees(Exception):
    """A peer whose vectors are not those of the reference."""


@dataclass(frozen=True)
class Agreement:
    """How far a peer's vectors are from the reference's."""

    cosine: float
    """The least of all texts."""
    difference: float
    """The largest of all elements."""


def compare(
    vectors: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    precision: Precision,
) -> Agreement:
    """Raises `Disagrees` when the vectors are further apart than the precision explains."""
    ours, theirs = np.asarray(vectors, float), np.asarray(reference, float)
    if ours.shape != theirs.shape:
        raise Disagrees(f"vectors of shape {ours.shape}, where the reference has {theirs.shape}")
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(((ours * theirs).sum(axis=1) / lengths).min())
    difference = float(np.abs(ours - theirs).max())
    # Written so that a NaN is refused, too.
    if not cosine >= LEAST_COSINE[precision]:
        raise Disagrees(f"cosine {cosine:.4f} to the reference")
    if precision == "float32" and not difference <= MOST_DIFFERENCE:
        raise Disagrees(f"an element is {difference:.1e} from the reference's")
    return Agreement(cosine, difference)
