"""The CPU's runner on the real model: batches in, vectors in the batch's order out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from real_runner import TEXTS, chunk_of, load_on_cpu, request_of, segment, vectors_by_text

from millpond.cpu.row_buckets import FEW_ROWS, FEWEST_ROWS, whole_rows
from millpond.errors import TextTooLong
from millpond.runner.cpu.runner import CpuModelRunner
from millpond.runner.limits import CPU_BATCH_TOKENS, NARROW_BATCH_TOKENS, cpu_batch_tokens
from millpond.scheduler.batch import Batch


@pytest.fixture(scope="module")
def runner() -> CpuModelRunner:
    return load_on_cpu()


def test_vectors_come_in_the_order_of_the_segments(runner: CpuModelRunner) -> None:
    alone = {
        text: vectors_by_text(runner, Batch(0, (segment(runner, [text]),)))[0][1] for text in TEXTS
    }
    together = Batch(0, (segment(runner, TEXTS[:2]), segment(runner, TEXTS[2:])))
    for text, vector in vectors_by_text(runner, together):
        assert np.array_equal(vector, alone[text])
    for half in together.halves():
        for text, vector in vectors_by_text(runner, half):
            assert np.array_equal(vector, alone[text])


def test_a_batch_is_filled_up_to_one_of_few_numbers_of_rows(runner: CpuModelRunner) -> None:
    batches = [Batch(0, (segment(runner, ["a mill"] * count),)) for count in (1, 8, 9, 129)]
    found = [(batch.tokens, runner.launch(batch).padded_tokens) for batch in batches]
    assert runner.fewest_rows in (FEW_ROWS, FEWEST_ROWS)
    assert found == [(n, whole_rows(n, runner.fewest_rows) - n) for n in (4, 32, 36, 516)]


def test_tokenising_notes_counts_and_cuts_and_sorts_longest_first(runner: CpuModelRunner) -> None:
    texts = ["one", "word " * 400, "two words"]
    request = request_of(texts)
    chunk = chunk_of(runner, request, [2, 0, 1])
    assert request.token_counts.tolist() == [3, 256, 4]
    assert request.truncated.tolist() == [False, True, False]
    assert chunk.rows.tolist() == [1, 2, 0]
    assert chunk.lengths.tolist() == [256, 4, 3]


def test_an_error_names_the_text_by_its_place_in_the_call(runner: CpuModelRunner) -> None:
    request = request_of(["short", "also short", "word " * 400], truncate="error", strict=True)
    with pytest.raises(TextTooLong, match=r"text 2: .* 402 tokens") as caught:
        chunk_of(runner, request, [1, 2])
    assert caught.value.index == 2


def test_a_task_may_have_a_shorter_limit_than_the_model(runner: CpuModelRunner) -> None:
    request = request_of(["word " * 100], max_length=12)
    assert chunk_of(runner, request, [0]).lengths.tolist() == [12]


@pytest.mark.parametrize(
    ("error", "out_of_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried…"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("no"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(
    runner: CpuModelRunner, error: Exception, out_of_memory: bool
) -> None:
    assert runner.is_out_of_memory(error) is out_of_memory
    assert not runner.is_fatal(error)


@pytest.mark.parametrize(
    ("columns", "in_int8", "threads", "tokens"),
    [
        (384, False, 2, NARROW_BATCH_TOKENS),
        (384, False, 16, NARROW_BATCH_TOKENS),
        (384, True, 2, NARROW_BATCH_TOKENS),
        (384, True, 16, 2 * NARROW_BATCH_TOKENS),
        (768, True, 16, CPU_BATCH_TOKENS),
        (768, False, 2, CPU_BATCH_TOKENS),
    ],
)
def test_narrow_layers_get_larger_batches(
    columns: int, in_int8: bool, threads: int, tokens: int
) -> None:
    assert cpu_batch_tokens(columns=columns, in_int8=in_int8, threads=threads) == tokens
