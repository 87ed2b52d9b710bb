"""The model's vectors become the caller's rows: fewer dimensions, unit length, other types."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.util.quantization import quantize_embeddings

from millpond import (
    InvalidDimensions,
    InvalidInput,
    InvalidOption,
    TextFailed,
    TextsFailed,
    quantize,
    similarity,
)
from millpond.embeddings import Embeddings, OutputSpec, Timings

ALL = ["float32", "float16", "int8", "uint8", "binary", "ubinary"]
TIMINGS = Timings(queue_s=0, tokenize_s=0, forward_s=0, total_s=0)


def vectors(texts: int, dimension: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(texts, dimension)).astype(np.float32)


def result_of(rows: np.ndarray, output: OutputSpec, **errors: TextFailed) -> Embeddings:
    return Embeddings(
        rows=rows,
        output=output,
        token_counts=np.full(len(rows), 2, dtype=np.int32),
        truncated=np.zeros(len(rows), dtype=np.bool_),
        timings=TIMINGS,
        errors={int(place.lstrip("_")): error for place, error in errors.items()},
    )


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dimension", [8, 16, 64])
@pytest.mark.parametrize("seed", range(3))
def test_quantised_vectors_are_the_references(dtype: Any, dimension: int, seed: int) -> None:
    given_vectors = vectors(50, dimension, seed)
    expected = quantize_embeddings(given_vectors, precision=dtype)
    found = quantize(given_vectors, dtype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_queries_are_quantised_by_the_ranges_of_the_documents(dtype: Any) -> None:
    documents, queries = vectors(50, 8), vectors(5, 8, seed=1)
    ranges = np.stack([documents.min(axis=0), documents.max(axis=0)])
    found = quantize(queries, dtype, ranges=ranges)
    inside = ((queries >= ranges[0]) & (queries <= ranges[1])).all(axis=1)
    assert inside.any()
    expected = quantize_embeddings(queries, precision=dtype, ranges=ranges)
    np.testing.assert_array_equal(found[inside], expected[inside])
    np.testing.assert_array_equal(quantize(queries[:1], dtype, ranges=ranges), found[:1])


@given(st.floats(-3, 3), st.sampled_from(["int8", "uint8"]))
def test_a_value_outside_the_ranges_is_clipped_and_not_wrapped(value: float, dtype: Any) -> None:
    ranges = np.array([[-1.0], [1.0]], dtype=np.float32)
    (level,) = quantize(np.array([[value]], dtype=np.float32), dtype, ranges=ranges)[0]
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    if value <= -1:
        assert level == lowest
    if value >= 1.01:  # at 1 itself rounding decides, as in the reference
        assert level == highest


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_single_vector_has_no_ranges(dtype: Any) -> None:
    with pytest.raises(InvalidOption, match=r"millpond\.quantize"):
        quantize(vectors(1, 8), dtype)
    with pytest.raises(InvalidOption, match="one vector has none"):
        OutputSpec(dimension=8, dtype=dtype).allocate(1)
    OutputSpec(dimension=8, dtype=dtype).allocate(2)
    OutputSpec(dimension=8, dtype=dtype).allocate(0)
    OutputSpec(dimension=8, dtype="binary").allocate(1)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_failed_text_changes_nothing_for_the_others(dtype: Any) -> None:
    good = vectors(10, 8)
    with_failed = np.insert(good, 3, np.nan, axis=0)
    found = quantize(with_failed, dtype)
    np.testing.assert_array_equal(np.delete(found, 3, axis=0), quantize(good, dtype))
    assert quantize(np.full((2, 8), np.nan, np.float32), dtype).shape == (2, 8)


def test_a_constant_dimension_is_no_division_by_zero() -> None:
    assert quantize(np.ones((3, 2), np.float32), "uint8").tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("dimensions", [None, 5, 16])
@pytest.mark.parametrize("normalize", [None, False, True])
def test_rows_fit_the_array_that_was_made_for_them(
    dtype: Any, dimensions: int | None, normalize: bool | None
) -> None:
    output = OutputSpec(dimension=16, dimensions=dimensions, normalize=normalize, dtype=dtype)
    made = vectors(6, 16)
    array = output.allocate(6)
    array[:] = output.rows(made)
    found = output.finish(array)
    kept = made[:, : output.width]
    if normalize or (output.width < 16 and normalize is None):
        kept = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    expected = quantize(kept, dtype)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(
        found.astype(np.float64),
        expected.astype(np.float64),
        rtol=1e-3,
        atol=1.0 * output.calibrated,
    )


def test_a_zero_vector_stays_zero() -> None:
    output = OutputSpec(dimension=4, normalize=True)
    assert output.rows(np.zeros((1, 4), np.float32)).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("dimensions", [0, -1, 17, 2.5, "4", True])
def test_dimensions_that_cannot_be_had_are_refused(dimensions: Any) -> None:
    with pytest.raises(InvalidDimensions, match="dimensions="):
        OutputSpec(dimension=16, dimensions=dimensions)


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidOption, match="ubinary"):
        OutputSpec(dimension=4, dtype="int4")  # type: ignore[arg-type]


def test_rows_never_written_are_nan_and_not_something() -> None:
    assert np.isnan(OutputSpec(dimension=4).allocate(2)).all()
    assert not OutputSpec(dimension=4, dtype="binary").allocate(2).any()


def test_one_error_is_raised_itself_and_several_together() -> None:
    output = OutputSpec(dimension=4)
    rows = vectors(3, 4)
    result_of(rows, output).raise_for_errors()
    one = TextFailed("bad", index=1)
    with pytest.raises(TextFailed) as caught:
        result_of(rows, output, _1=one).raise_for_errors()
    assert (str(caught.value), caught.value.index) == ("text 1: bad", 1)
    assert caught.value is not one, "who raises it again adds to a traceback of his own"
    with pytest.raises(TextsFailed) as several:
        result_of(rows, output, _2=TextFailed("bad", index=2), _1=one).raise_for_errors()
    assert list(several.value.errors) == [1, 2]


def test_a_result_survives_pickling() -> None:
    result = result_of(vectors(2, 8), OutputSpec(dimension=8, dtype="int8"))
    copy = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(copy.vectors, result.vectors)
    assert repr(copy) == repr(result)


# Similarities.


def test_similarities_are_cosines_in_float32() -> None:
    random = np.random.default_rng(3)
    a, b = random.standard_normal((3, 8)), random.standard_normal((5, 8))
    found = similarity(a, b)
    assert (found.shape, found.dtype) == ((3, 5), np.float32)
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(found, a @ b.T / lengths, atol=1e-6)
    np.testing.assert_array_equal(similarity(a), similarity(a, a))
    np.testing.assert_allclose(np.diag(similarity(a)), 1, atol=1e-6)
    assert np.abs(similarity(a * 1e-3, a)).max() <= 1


@pytest.mark.parametrize(
    ("a", "b", "shape"),
    [((8,), (5, 8), (5,)), ((3, 8), (8,), (3,)), ((8,), (8,), ()), ((0, 8), (5, 8), (0, 5))],
)
def test_one_vector_leaves_its_axis_out(
    a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    found = similarity(np.ones(a, dtype=np.float16), np.ones(b))
    assert found.shape == shape
    np.testing.assert_allclose(found, 1, rtol=1e-6)


def test_zeros_are_similar_to_nothing_and_lists_are_taken() -> None:
    assert similarity([[0.0, 0.0]], [[1.0, 2.0]]).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "a has 3 dimensions and b 4"),
        (np.ones((2, 3, 4)), np.ones((2, 4)), "a has 3 axes"),
        (np.ones((2, 3)), np.float32(1), "b has 0 axes"),
        (np.ones((2, 3), dtype=np.int8), np.ones((2, 3)), "a is of int8"),
        ([[1.0], [1.0, 2.0]], np.ones((2, 3)), "a: its vectors have different lengths"),
        (["text"], np.ones((2, 3)), "a is of "),
    ],
)
def test_what_cannot_be_compared_is_refused(a: Any, b: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        similarity(a, b)
