"""Which texts of a pass have numbers that are good to give away."""

from __future__ import annotations

import numpy as np

from millpond.engine.core.delivery import finite_texts
from millpond.outputs import RaggedRows


def test_a_text_is_finite_if_all_of_its_rows_are() -> None:
    ragged = RaggedRows(np.ones((8, 2), np.float32), np.array([0, 3, 5, 5, 8]))
    assert finite_texts(ragged).tolist() == [True] * 4
    ragged.values[3, 1] = np.inf
    assert finite_texts(ragged).tolist() == [True, False, True, True]
    assert finite_texts(np.array([[1.0, np.nan], [1.0, 2.0]])).tolist() == [False, True]
