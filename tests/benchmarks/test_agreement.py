"""Nobody is timed whose vectors are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers.agreement import Disagrees, compare


def unit_vectors(seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(6, 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_equal_vectors_agree() -> None:
    found = compare(unit_vectors(), unit_vectors(), "float32")
    assert found.cosine == pytest.approx(1)
    assert found.difference == 0


def test_bfloat16_may_differ_where_float32_may_not() -> None:
    reference = unit_vectors()
    rounded = reference + 1e-3
    assert compare(rounded, reference, "bfloat16").difference == pytest.approx(1e-3)
    with pytest.raises(Disagrees, match="an element is"):
        compare(reference + 1e-3 * np.sign(reference), reference, "float32")


def test_one_wrong_vector_is_enough() -> None:
    wrong = unit_vectors()
    wrong[3] = unit_vectors(1)[3]
    for precision in ("float32", "bfloat16"):
        with pytest.raises(Disagrees, match="cosine"):
            compare(wrong, unit_vectors(), precision)


def test_vectors_in_another_order_are_refused() -> None:
    with pytest.raises(Disagrees):
        compare(unit_vectors()[::-1], unit_vectors(), "bfloat16")


def test_a_vector_that_is_not_finite_is_refused() -> None:
    wrong = unit_vectors()
    wrong[0, 0] = np.nan
    with pytest.raises(Disagrees):
        compare(wrong, unit_vectors(), "bfloat16")


def test_vectors_of_another_shape_are_refused() -> None:
    with pytest.raises(Disagrees, match="shape"):
        compare(unit_vectors()[:, :8], unit_vectors(), "float32")


def test_float32_vectors_that_are_not_of_unit_length_are_refused() -> None:
    with pytest.raises(Disagrees, match="element"):
        compare(2 * unit_vectors(), unit_vectors(), "float32")
