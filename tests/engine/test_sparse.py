"""Calls for sparse vectors keep the laws that all calls keep, whatever becomes of a batch."""

from __future__ import annotations

from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FakeRunner, held_engine, start_engine, vectors_for, wait_until_tokenized

from millpond import DeadlineExceeded, Engine, NonFiniteVector, TextFailed
from millpond.checkpoint.kinds.sparse import SparseSpec
from millpond.model.info import RouteInfo
from millpond.outputs import RaggedRows

SPEC: dict[str, Any] = {"sparse": SparseSpec(has_terms=False)}
TEXTS = ["the mill", "a pond", "bad stone", "grain and water", "the mill"]


class SparseRunner(FakeRunner):
    """A `FakeRunner` that gives the even dimensions of its vectors, each with its number."""

    @property
    def routes(self) -> tuple[RouteInfo, ...]:
        return tuple(replace(route, is_sparse=True) for route in super().routes)

    def collect(self, handle: Any) -> Any:
        vectors = super().collect(handle)
        dimensions = np.arange(0, self.dimension, 2, dtype=np.float32)
        rows = [np.stack([dimensions, vector[::2]], axis=1) for vector in vectors]
        return RaggedRows.of(rows, 2)


def expected(texts: list[str]) -> np.ndarray:
    dense = vectors_for(texts).copy()
    dense[:, 1::2] = 0
    return dense


def engine_on(runner: SparseRunner, **options: Any) -> Engine:
    return start_engine(runner, spec=SPEC, **options)


def test_each_text_has_its_own_weights_in_the_order_of_the_call() -> None:
    runner = SparseRunner()
    with engine_on(runner) as engine:
        np.testing.assert_array_equal(engine.embed_sparse(TEXTS).to_dense(), expected(TEXTS))
        assert engine.embed_sparse([]).shape == (0, runner.dimension)
    assert runner.ran.count("the mill") == 1  # of two in one call


def test_a_weight_that_is_no_number_is_the_error_of_its_text() -> None:
    with engine_on(SparseRunner(not_finite_on=["bad"])) as engine:
        result = engine.submit_sparse(TEXTS).result()
        assert list(result.errors) == [2]
        assert isinstance(result.errors[2], NonFiniteVector)
        assert len(result.vectors[2]) == 0
        good = [0, 1, 3, 4]
        np.testing.assert_array_equal(result.vectors.to_dense()[good], expected(TEXTS)[good])
        with pytest.raises(NonFiniteVector, match="text 2"):
            engine.embed_sparse(TEXTS)


@pytest.mark.parametrize("options", [{"max_active_dims": 1}, {"min_weight": 1e9}], ids=str)
def test_a_cut_does_not_hide_what_is_no_number(options: dict[str, Any]) -> None:
    with engine_on(SparseRunner(not_finite_on=["bad"])) as engine:
        assert list(engine.submit_sparse(TEXTS, **options).result().errors) == [2]


def test_a_text_that_the_model_fails_on_fails_alone() -> None:
    with engine_on(SparseRunner(raises_on=["bad"])) as engine:
        result = engine.submit_sparse(TEXTS).result()
        assert list(result.errors) == [2]
        assert isinstance(result.errors[2], TextFailed)
        good = [0, 1, 3, 4]
        np.testing.assert_array_equal(result.vectors.to_dense()[good], expected(TEXTS)[good])


def test_a_batch_without_room_is_split_until_it_fits() -> None:
    runner = SparseRunner(memory_tokens=3)
    with engine_on(runner) as engine:
        np.testing.assert_array_equal(engine.embed_sparse(TEXTS).to_dense(), expected(TEXTS))
    assert runner.memory_freed
    assert len(runner.batches) > 2


def test_a_deadline_ends_one_call_and_no_other() -> None:
    runner = SparseRunner()
    with held_engine(runner, spec=SPEC) as engine:
        late = engine.submit_sparse(["too late"], timeout=0.01)
        patient = engine.submit_sparse(["a pond"])
        with pytest.raises(DeadlineExceeded):
            late.result()
        runner.let()
        np.testing.assert_array_equal(patient.result().vectors.to_dense(), expected(["a pond"]))


def test_a_cancelled_call_leaves_the_queue_and_the_others_their_weights() -> None:
    runner = SparseRunner(max_batch_tokens=2, min_batch_tokens=2)
    with held_engine(runner, spec=SPEC) as engine:
        first = engine.submit_sparse(["a pond"])
        runner.wait_until_held()
        other = engine.submit_sparse(["never run"])
        wait_until_tokenized(engine, 1)
        assert other.cancel()
        runner.let()
        np.testing.assert_array_equal(first.result().vectors.to_dense(), expected(["a pond"]))
        with pytest.raises(CancelledError):
            other.result()
    assert "never run" not in runner.ran
