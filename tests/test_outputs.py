"""Rows of several a text have the slices of an array with one."""

from __future__ import annotations

import numpy as np

from millpond.outputs import RaggedRows
from millpond.scores import TokenLabel, TokenScoreOutput, TokenScores

TEXTS = [
    np.arange(2 * length, dtype=np.float32).reshape(length, 2) + 100 * length
    for length in (3, 1, 0, 4)
]
ROWS = RaggedRows.of(TEXTS, 2)


def assert_rows(rows: RaggedRows, places: list[int]) -> None:
    assert len(rows) == len(places)
    assert rows.width == 2
    for found, place in zip(rows, places, strict=True):
        np.testing.assert_array_equal(found, TEXTS[place])


def test_rows_are_found_by_text() -> None:
    assert_rows(ROWS, [0, 1, 2, 3])
    for place, rows in enumerate(TEXTS):
        np.testing.assert_array_equal(ROWS[place], rows)
    assert_rows(ROWS[1:3], [1, 2])
    assert_rows(ROWS[np.array([True, False, False, True])], [0, 3])
    assert_rows(ROWS.at(np.array([3, 0])), [3, 0])
    assert_rows(ROWS[4:], [])


def test_scores_of_tokens_are_stored_by_text_and_named() -> None:
    output = TokenScoreOutput(labels=("a", "b"), activation="softmax")
    room = output.allocate(5)
    output.store(room, np.array([4, 0]), output.rows(ROWS[:2]))
    one = np.zeros(5)
    found = output.result(
        room, token_counts=one, truncated=one, timings=None, errors={1: ValueError()}
    )
    assert isinstance(found, TokenScores)
    best = found.best(4, [None, (0, 2), (3, 5)])
    assert [(label.name, label.start, label.end) for label in best] == [("b", 0, 2), ("b", 3, 5)]
    assert isinstance(best[0], TokenLabel)
    np.testing.assert_allclose(best[0].score, np.e / (1 + np.e), rtol=1e-6)
    assert found.best(1, [(0, 1)]) == []
