"""A packed batch in a bucket, on a device that is the CPU in disguise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from replayed_graphs import capture
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from millpond.attention.packed import PackedSequences
from millpond.model.pooling_model import PooledRows
from millpond.runner.cuda.bucketed_forward import (
    LONG_TEXTS,
    MOST_RECORDED_ROWS,
    BucketedForward,
)
from millpond.runner.cuda.pinned_buffers import PinnedBuffers

CPU = torch.device("cpu")


class FakePipeline:
    """A text's vector is the sum of its ids, and of ids times places."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(pad_id=9, max_length=256)
        self.rows: list[int] = []
        self.sequences: list[PackedSequences] = []

    def packed(
        self, ids: Tensor, positions: Tensor, sequences: PackedSequences, texts: PooledRows
    ) -> Tensor:
        self.rows.append(len(ids))
        self.sequences.append(sequences)
        placed = torch.stack([ids, ids * positions], dim=1).cumsum(0)
        before = torch.cat([placed.new_zeros(1, 2), placed])
        return (before[texts.starts + texts.lengths] - before[texts.starts]).float()


class CountCopies(TorchDispatchMode):
    """Counts the copies between tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.copies += 1
        return func(*args, **(kwargs or {}))


def forward_on(
    pipeline: Any, *, most_tokens: int = 1023, **options: Any
) -> tuple[BucketedForward, PinnedBuffers]:
    buffers = PinnedBuffers(pinned=False)
    forward = BucketedForward(
        pipeline,
        device=CPU,
        buffers=buffers,
        capture=capture,
        most_tokens=most_tokens,
        **options,
    )
    return forward, buffers


def texts_of(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(10, 100, length) for length in sorted(lengths, reverse=True)]


def vectors(forward: BucketedForward, buffers: PinnedBuffers, texts: list[np.ndarray]) -> Tensor:
    lengths = np.array([len(text) for text in texts])
    run = forward.run(np.concatenate(texts), lengths, np.zeros_like(lengths))
    buffers.give(run.staging)
    return run.vectors[: len(texts)].clone()


def expected(texts: list[np.ndarray]) -> Tensor:
    sums = [(text.sum(), (text * np.arange(len(text))).sum()) for text in texts]
    return torch.tensor(sums).float()


def test_every_batch_has_its_own_vectors_recorded_or_not() -> None:
    forward, buffers = forward_on(FakePipeline())
    for seed in range(6):
        for lengths in ((3,), (5, 2, 2), (100, 40, 7, 1), (9,) * 20, (900,)):
            texts = texts_of(*lengths, seed=seed)
            assert torch.equal(vectors(forward, buffers, texts), expected(texts))
    assert buffers.made == 1, "the staging buffer is used again"
    assert "graphs=4" in repr(forward)


def test_sequences_are_described_by_the_bucket_and_not_by_the_batch() -> None:
    pipeline = FakePipeline()
    forward, buffers = forward_on(pipeline)
    for lengths in ((5, 2), (30,), (40, 1, 1)):
        vectors(forward, buffers, texts_of(*lengths))
    assert {s.longest for s in pipeline.sequences} == {128}
    boundaries = [s.boundaries for s in pipeline.sequences]
    assert {None if b is None else (b.dtype, len(b)) for b in boundaries} == {(torch.int32, 9)}


def test_one_copy_takes_a_batch_to_the_device() -> None:
    forward, buffers = forward_on(FakePipeline())
    texts = texts_of(5, 3)
    with CountCopies() as counted:
        vectors(forward, buffers, texts)
    assert counted.copies == 1


def test_a_batch_beyond_the_largest_bucket_runs_plainly() -> None:
    forward, buffers = forward_on(FakePipeline(), most_tokens=255)
    for _ in range(3):
        texts = texts_of(3000)
        assert torch.equal(vectors(forward, buffers, texts), expected(texts))
    assert "graphs=0" in repr(forward)


def test_the_largest_batches_run_plainly_and_their_graphs_take_no_memory() -> None:
    forward, buffers = forward_on(FakePipeline(), most_tokens=65_535)
    for length, graphs in ((9000, 1), (MOST_RECORDED_ROWS - 1, 2), (MOST_RECORDED_ROWS, 2)):
        for _ in range(3):
            texts = texts_of(length)
            assert torch.equal(vectors(forward, buffers, texts), expected(texts))
        assert f"graphs={graphs}" in repr(forward)
    fixed, buffers = forward_on(FakePipeline(), most_tokens=16_383, invariant_rows=16_384)
    for _ in range(2):
        vectors(fixed, buffers, texts_of(9000))
    assert "graphs=1" in repr(fixed), "fixed rows are one size"


def test_invariant_rows_give_every_pass_the_same_rows() -> None:
    pipeline = FakePipeline()
    forward, buffers = forward_on(pipeline, invariant_rows=1024)
    for lengths in ((1,), (500, 3), (1,) * 700):
        vectors(forward, buffers, texts_of(*lengths))
    assert set(pipeline.rows) == {1024}
    assert all(sequences.deterministic for sequences in pipeline.sequences)


def test_after_warming_up_a_query_is_not_run_in_python() -> None:
    pipeline = FakePipeline()
    forward, buffers = forward_on(pipeline)
    forward.warm_up(most_texts=64)
    before = repr(forward)
    texts = texts_of(9)
    assert torch.equal(vectors(forward, buffers, texts), expected(texts))
    assert repr(forward) == before
    forward.free_memory()
    assert "graphs=0" in repr(forward)


@pytest.mark.parametrize(
    ("max_length", "made"),
    [(None, LONG_TEXTS), (8192, LONG_TEXTS), (2048, LONG_TEXTS[:1]), (512, ())],
)
def test_what_long_texts_need_is_made_where_the_model_reads_them(
    max_length: int | None, made: tuple[int, ...]
) -> None:
    pipeline = FakePipeline()
    pipeline.tokenizer.max_length = max_length
    forward, _ = forward_on(pipeline, most_tokens=8191)
    forward.compile_for_long_texts()
    assert [sequences.longest for sequences in pipeline.sequences] == list(made)
    assert "graphs=0" in repr(forward)


def test_nothing_is_made_for_texts_that_no_batch_has_room_for() -> None:
    pipeline = FakePipeline()
    forward, _ = forward_on(pipeline, most_tokens=255)
    forward.compile_for_long_texts()
    assert not pipeline.sequences
