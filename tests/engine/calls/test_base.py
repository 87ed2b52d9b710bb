"""Queries that wait together are tokenised together, and a bad one among them fails alone."""

from __future__ import annotations

import numpy as np
from fakes import PATIENCE_S, FakeRunner, held_engine, vectors_for, wait_until_tokenized

from millpond.engine.calls.base import FEW_QUERIES
from millpond.errors import InvalidInput

MANY = 40


def test_many_queries_take_few_calls_of_the_tokenizer() -> None:
    with held_engine(runner := FakeRunner(max_batch_tokens=1000)) as engine:
        first = engine.submit("first")
        runner.wait_for_batches(1)
        core = engine._instance.core
        with core.lock:  # the tokenising thread waits, as it does while it is at work
            futures = [engine.submit(f"query {number}") for number in range(MANY)]
        wait_until_tokenized(engine, MANY)
        assert runner.texts_tokenized == MANY + 1
        assert runner.chunks_tokenized <= 1 + FEW_QUERIES + 2
        runner.let()
        first.result(PATIENCE_S)
        for number, future in enumerate(futures):
            expected = vectors_for([f"query {number}"])
            np.testing.assert_array_equal(future.result(PATIENCE_S).vectors, expected)


def test_a_query_that_cannot_be_accepted_fails_alone() -> None:
    runner = FakeRunner(max_batch_tokens=1000, refuses=["bad"])
    with held_engine(runner) as engine:
        engine.submit("first")
        runner.wait_for_batches(1)
        with engine._instance.core.lock:
            texts = [f"bad {n}" if n in (20, 30) else f"query {n}" for n in range(MANY)]
            futures = [engine.submit(text) for text in texts]
        runner.let()
        for text, future in zip(texts, futures, strict=True):
            result = future.result(PATIENCE_S)
            if text.startswith("bad"):
                assert isinstance(result.errors[0], InvalidInput)
            else:
                np.testing.assert_array_equal(result.vectors, vectors_for([text]))
