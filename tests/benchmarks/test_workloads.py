"""The texts of the benchmark have the lengths they are said to have, every time."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from benchmarks.cpu import workloads

pytestmark = pytest.mark.slow

COUNT = 2000


@pytest.mark.parametrize(
    ("make", "median", "p95"),
    [(workloads.queries, 9, 25), (workloads.passages, 70, 160)],
)
def test_lengths_are_log_normal(make, median, p95) -> None:
    lengths = workloads.token_counts(make(COUNT))
    assert statistics.median(lengths) == pytest.approx(median, rel=0.06)
    assert np.percentile(lengths, 95) == pytest.approx(p95, rel=0.08)


def test_chunks_are_long_but_for_a_tenth() -> None:
    lengths = np.array(workloads.token_counts(workloads.chunks(COUNT)))
    # A chunk ends with a word, so it may miss its length by one word's tokens.
    assert lengths.max() <= 512
    assert (lengths < 240).mean() == pytest.approx(0.10, abs=0.025)
    assert np.median(lengths) == pytest.approx(371, rel=0.05)


def test_long_chunks_come_where_the_model_reads_them() -> None:
    texts = workloads.chunks(500, longest=8192)
    lengths = np.array([len(e) for e in workloads.tokenizer().encode_batch(texts)])
    assert 0.005 < (lengths > 1900).mean() < 0.04
    assert lengths.max() <= 8000


def test_texts_of_one_length_have_it() -> None:
    lengths = workloads.token_counts(workloads.of_length(64, 50))
    assert max(lengths) <= 64
    assert statistics.median(lengths) >= 62


@pytest.mark.parametrize("make", [workloads.queries, workloads.passages, workloads.chunks])
def test_the_seed_decides(make) -> None:
    assert make(20) == make(20)
    assert make(20, seed=8) != make(20, seed=9)
    assert make(20)[:10] == make(10)


def test_texts_differ() -> None:
    texts = workloads.passages(500)
    assert len(set(texts)) == len(texts)


def test_arrivals_are_poisson_with_four_queries_to_a_job() -> None:
    arrivals = workloads.arrivals(200, 50)
    times = [arrival.after_s for arrival in arrivals]
    gaps = np.diff([0.0, *times])
    assert times == sorted(times)
    assert times[-1] < 50
    assert len(arrivals) == pytest.approx(10_000, rel=0.04)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as an exponential has it
    queries = [arrival for arrival in arrivals if arrival.kind == "query"]
    assert len(queries) / len(arrivals) == pytest.approx(0.8, abs=0.02)
    assert arrivals == workloads.arrivals(200, 50)
