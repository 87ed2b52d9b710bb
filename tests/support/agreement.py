"""Whether vectors or scores are the reference's, within the rounding of float32."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["TOLERANCE", "VISIBLE", "agree", "off"]

TOLERANCE = 1e-5
VISIBLE = 100 * TOLERANCE
"""A difference this large cannot hide in the tolerance."""


def off(found: Any, expected: Any) -> float:
    """The largest difference of an element, for each unit that its row reaches above 1.

    Vectors that nothing normalises may be long, and rounding grows with them: in rows of up to 6
    the last bits of two processors are 5e-6 apart.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    longest = np.abs(expected).max(axis=-1, keepdims=True)
    return float((np.abs(found - expected) / np.maximum(1, longest)).max())


def agree(found: Any, expected: Any) -> None:
    """Fails unless they do, and unless they are large enough for it to mean something."""
    assert off(found, expected) <= TOLERANCE
    assert np.abs(expected).max() > VISIBLE
