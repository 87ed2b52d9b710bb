"""Token vectors are a list of matrices in one array, and `maxsim` is sentence-transformers'."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sentence_transformers.util.similarity import maxsim as reference
from sentence_transformers.util.similarity import mean_maxsim

from millpond import InvalidInput, InvalidOption, TokenVectors, maxsim

RANDOM = np.random.default_rng(3)
QUERY = RANDOM.normal(size=(5, 8)).astype(np.float32)
DOCUMENTS = [RANDOM.normal(size=(n, 8)).astype(np.float32) for n in (1, 7, 3, 300, 2)]


def test_it_is_a_list_of_matrices() -> None:
    found = TokenVectors.of(DOCUMENTS)
    assert (len(found), found.dimension) == (5, 8)
    assert found.counts.tolist() == [1, 7, 3, 300, 2]
    assert found.vectors.dtype == np.float32
    assert found.offsets.dtype == np.int64
    for ours, theirs in zip(found, DOCUMENTS, strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(found[1], DOCUMENTS[1])
    assert np.array_equal(found[-1], DOCUMENTS[-1])
    with pytest.raises(IndexError):
        found[5]
    assert repr(found) == "TokenVectors(texts=5, vectors=313, dimension=8)"


@pytest.mark.parametrize(
    "which", [slice(1, 3), slice(None), slice(3, 1), slice(None, None, 2), slice(None, None, -1)]
)
def test_a_slice_is_as_a_list_s(which: slice) -> None:
    assert TokenVectors.of(DOCUMENTS)[which] == TokenVectors.of(DOCUMENTS[which], 8)


def test_places_and_masks_choose() -> None:
    found = TokenVectors.of(DOCUMENTS)
    assert found[[4, 0]] == TokenVectors.of([DOCUMENTS[4], DOCUMENTS[0]])
    assert found[found.counts > 2] == TokenVectors.of(DOCUMENTS[1:4])


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_it_can_be_copied_and_pickled(copied: Callable[[Any], Any]) -> None:
    assert copied(TokenVectors.of(DOCUMENTS)) == TokenVectors.of(DOCUMENTS)


def test_json_takes_its_lists() -> None:
    texts = json.loads(json.dumps(TokenVectors.of(DOCUMENTS[:3]).to_list()))
    assert TokenVectors.of(texts) == TokenVectors.of(DOCUMENTS[:3])


def test_none_and_empty_ones() -> None:
    assert len(TokenVectors.of([])) == 0
    assert TokenVectors.of([], 8).vectors.shape == (0, 8)
    assert TokenVectors.of([np.empty((0, 8)), QUERY]).counts.tolist() == [0, 5]
    assert TokenVectors.of([]).to_list() == []


@pytest.mark.parametrize(
    ("vectors", "offsets"),
    [
        (QUERY, [0, 4]),
        (QUERY, [1, 5]),
        (QUERY, [0, 4, 3, 5]),
        (QUERY, []),
        (QUERY[0], [0, 8]),
        (QUERY.astype(str), [0, 5]),
    ],
)
def test_offsets_that_do_not_fit_are_refused(vectors: Any, offsets: list[int]) -> None:
    with pytest.raises(InvalidInput):
        TokenVectors(vectors, offsets)


def test_matrices_of_two_widths_are_refused() -> None:
    with pytest.raises(InvalidInput, match="text 1"):
        TokenVectors.of([QUERY, QUERY[:, :4]])


@pytest.mark.parametrize("bad", [QUERY[:, :4], [["x"] * 8], [[1.0] * 8, [1.0]], QUERY[0]])
def test_what_is_wrong_is_told_with_its_one_place(bad: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^text 2: (?!.*text \d)") as caught:
        TokenVectors.of([QUERY, QUERY, bad])
    assert caught.value.index == 2
    with pytest.raises(InvalidInput, match=r"^text 2: documents: (?!.*text \d)") as caught:
        maxsim(QUERY, [QUERY, QUERY, bad])
    assert caught.value.index == 2


@pytest.mark.parametrize("mean", [False, True])
def test_maxsim_is_the_reference_s(mean: bool) -> None:
    expected = (mean_maxsim if mean else reference)([QUERY, QUERY[:2]], DOCUMENTS).numpy()
    found = maxsim([QUERY, QUERY[:2]], DOCUMENTS, mean=mean)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(maxsim(QUERY, TokenVectors.of(DOCUMENTS), mean=mean), found[0])


def test_what_documents_and_queries_may_be() -> None:
    expected = maxsim(QUERY, DOCUMENTS)
    for query in (QUERY, QUERY.tolist(), torch.from_numpy(QUERY), QUERY.astype(np.float64)):
        assert np.array_equal(maxsim(query, DOCUMENTS), expected)
    for documents in (tuple(DOCUMENTS), list(map(torch.from_numpy, DOCUMENTS))):
        assert np.array_equal(maxsim(QUERY, documents), expected)
    assert maxsim(QUERY, DOCUMENTS[1]).shape == (1,)
    assert maxsim(QUERY, np.stack([QUERY, QUERY])).shape == (2,)
    assert maxsim(TokenVectors.of([QUERY]), DOCUMENTS).shape == (1, 5)
    assert maxsim(QUERY, []).shape == (0,)
    assert maxsim([], DOCUMENTS).shape == (0, 5)


def test_a_document_without_vectors_is_the_worst() -> None:
    documents = [np.empty((0, 8), dtype=np.float32), -QUERY]
    found = maxsim(QUERY, documents)
    assert found[0] == np.float32(-1e9)
    np.testing.assert_allclose(found, reference([QUERY], documents).numpy()[0], rtol=1e-6)


@given(
    query=arrays.arrays(np.float32, (4, 6), elements=st.floats(-4, 4, width=32)),
    order=st.permutations(range(5)),
)
def test_a_score_depends_on_nothing_but_its_query_and_document(
    query: np.ndarray, order: list[int]
) -> None:
    documents = [each[:, :6] for each in DOCUMENTS]
    expected = maxsim(query, documents)
    assert np.array_equal(maxsim(query, [documents[place] for place in order]), expected[order])
    for document, score in zip(documents, expected, strict=True):
        assert maxsim(query, [document])[0] == score


@pytest.mark.parametrize(
    ("query", "documents"),
    [
        ("text", DOCUMENTS),
        (QUERY, "text"),
        (QUERY, ["a", "b"]),
        (QUERY[0], DOCUMENTS),
        (QUERY, QUERY[0]),
        (QUERY[:, :4], DOCUMENTS),
        (QUERY, [QUERY, QUERY[:, :4]]),
        (QUERY, None),
        (None, DOCUMENTS),
    ],
)
def test_what_has_no_vectors_is_refused(query: Any, documents: Any) -> None:
    with pytest.raises(InvalidInput):
        maxsim(query, documents)


def test_mean_is_true_or_false() -> None:
    with pytest.raises(InvalidOption, match="mean"):
        maxsim(QUERY, DOCUMENTS, mean="yes")  # type: ignore[arg-type]
