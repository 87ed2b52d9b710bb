"""Activations are torch's own, and rankings are in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from millpond.checkpoint.kinds.scoring import ACTIVATIONS as NAMES
from millpond.outputs import Timings
from millpond.scores import ACTIVATIONS, Label, Ranked, ScoreOutput, Scores

LOGITS = np.random.default_rng(5).normal(scale=8, size=(37, 5)).astype(np.float32)
EXTREMES = np.array([[-1e4, -100.0, 0.0, 100.0, 1e4]], dtype=np.float32)


def scores(rows: np.ndarray, *labels: str) -> Scores:
    count = len(rows)
    return Scores(
        rows=rows.astype(np.float32),
        labels=labels,
        token_counts=np.ones(count, dtype=np.int32),
        truncated=np.zeros(count, dtype=np.bool_),
        timings=Timings(queue_s=0, tokenize_s=0, forward_s=0, total_s=0),
    )


@pytest.mark.parametrize("torch_name", NAMES)
def test_an_activation_is_torch_s(torch_name: str) -> None:
    options = {"dim": 1} if "oftmax" in torch_name else {}
    activation = getattr(torch.nn, torch_name)(**options)
    output = ScoreOutput(labels=tuple("abcde"), activation=NAMES[torch_name])
    for logits in (LOGITS, EXTREMES):
        found = output.rows(logits)
        expected = activation(torch.from_numpy(logits)).numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_every_activation_has_a_name_that_checkpoints_use() -> None:
    assert set(ACTIVATIONS) == set(NAMES.values())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_row_s_bits_do_not_depend_on_the_rows_beside_it(name: str) -> None:
    output = ScoreOutput(labels=tuple("abcde"), activation=name)
    together = output.rows(LOGITS)
    for index in range(len(LOGITS)):
        assert np.array_equal(output.rows(LOGITS[index : index + 1])[0], together[index])
        assert np.array_equal(output.rows(LOGITS[index:])[0], together[index])


def test_rankings_leave_out_what_has_no_score_and_keep_ties_in_order() -> None:
    found = scores(np.array([[0.5], [np.nan], [2.0], [0.5], [-1.0]]), "relevance")
    expected = [Ranked(2, 2.0), Ranked(0, 0.5), Ranked(3, 0.5), Ranked(4, -1.0)]
    assert found.ranked() == expected
    assert found.ranked(2) == expected[:2]
    assert found.ranked(9) == expected


def test_classes_are_in_order_and_ties_in_that_of_the_checkpoint() -> None:
    found = scores(np.array([[1.0, 3.0, 1.0], [np.nan] * 3]), "a", "b", "c")
    assert found.classes() == [[Label("b", 3.0), Label("a", 1.0), Label("c", 1.0)], []]
    assert found.classes(1) == [[Label("b", 3.0)], []]
    assert found.scores.shape == (2, 3)


def test_an_output_makes_room_for_scores_that_are_missing() -> None:
    output = ScoreOutput(labels=("a", "b"), activation="none")
    rows = output.allocate(3)
    assert rows.shape == (3, 2)
    assert np.isnan(rows).all()
