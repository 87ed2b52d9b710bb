"""Sparse vectors are rows of a matrix that is mostly zeros, and are checked where handed in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond import InvalidInput, InvalidOption, SparseVectors

DIMENSION = 12
WEIGHTS = st.floats(-4, 4, width=32).filter(bool)
DICTS = st.lists(st.dictionaries(st.integers(0, DIMENSION - 1), WEIGHTS, max_size=6), max_size=5)
ROWS: list[dict[int, float]] = [{3: 0.5, 1: 2.0}, {}, {11: 1.0, 0: -1.5, 3: 0.25}]


def names(indices: Any) -> list[str]:
    return [f"term{index}" for index in indices]


def made(terms: Any = None) -> SparseVectors:
    return SparseVectors.from_dicts(ROWS, DIMENSION, terms=terms)


@given(rows=DICTS, others=DICTS)
def test_it_is_a_matrix_of_mostly_zeros(
    rows: list[dict[int, float]], others: list[dict[int, float]]
) -> None:
    found = SparseVectors.from_dicts(rows, DIMENSION)
    dense = np.zeros((len(rows), DIMENSION), np.float32)
    for place, row in enumerate(rows):
        for index, weight in row.items():
            dense[place, index] = weight
    assert found.shape == dense.shape
    assert np.array_equal(found.to_dense(), dense)
    assert [list(row) for row in found.to_dicts()] == [sorted(row) for row in rows]
    assert found.to_dicts() == rows
    assert SparseVectors.of(found, DIMENSION).equals(found)
    assert np.array_equal(found.to_scipy().toarray(), dense)
    matrix = SparseVectors.from_dicts(others, DIMENSION)
    np.testing.assert_allclose(found.dot(matrix), dense @ matrix.to_dense().T, atol=1e-4)


@pytest.mark.parametrize(
    "which",
    [slice(1, 3), slice(None, None, -1), [2, 0, 2], np.array([True, False, True]), slice(2, 2)],
    ids=str,
)
def test_slices_places_and_masks_choose_rows(which: Any) -> None:
    assert np.array_equal(made()[which].to_dense(), made().to_dense()[which])


def test_a_row_is_by_place_from_either_end() -> None:
    indices, values = made()[-1]
    assert indices.tolist() == [0, 3, 11]
    assert values.tolist() == [-1.5, 0.25, 1.0]
    assert len(made()[1]) == 0
    assert np.array_equal(made()[0].to_dense(), made().to_dense()[0])
    with pytest.raises(IndexError):
        made()[3]


def test_terms_are_the_heaviest_first_and_ties_by_dimension() -> None:
    assert made(names).tokens(top_k=2) == [
        [("term1", 2.0), ("term3", 0.5)],
        [],
        [("term11", 1.0), ("term3", 0.25)],
    ]
    tied = SparseVectors.from_dicts([{5: 1.0, 2: 1.0}], DIMENSION, terms=names)
    assert tied.tokens() == [[("term2", 1.0), ("term5", 1.0)]]
    with pytest.raises(InvalidOption, match="no names"):
        made().tokens()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_the_same_numbers_and_terms(copied: Callable[[Any], Any]) -> None:
    found = copied(made(names))
    assert found.equals(made(names))
    assert found.tokens() == made(names).tokens()
    assert copied(made(names)[0]).tokens() == made(names)[0].tokens()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (([1, 1], [1.0, 2.0]), "twice"),
        (([12], [1.0]), "0 to 11"),
        (([-1], [1.0]), "0 to 11"),
        (([1.5], [1.0]), "whole numbers"),
        (([1, 2], [1.0]), "two flat lists"),
        (([[1]], [[1.0]]), "two flat lists"),
        ((["a"], [1.0]), "whole numbers"),
    ],
)
def test_what_is_no_sparse_vector_is_refused_with_its_place(row: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        SparseVectors.of([([1], [1.0]), row], DIMENSION)
    assert caught.value.index == 1


def test_vectors_of_two_models_have_no_product() -> None:
    with pytest.raises(InvalidInput, match="12 dimensions"):
        made().dot(SparseVectors.from_dicts([{1: 1.0}], 5))
    with pytest.raises(InvalidInput, match="12 dimensions"):
        made().dot(made().to_dense())  # type: ignore[arg-type]


def test_it_says_how_large_it_is() -> None:
    assert repr(made()) == "SparseVectors(texts=3, dimension=12, active=5)"
    assert made().nbytes == 4 * 8 + 5 * 4 + 5 * 4
    assert not made().equals(made()[:2])
