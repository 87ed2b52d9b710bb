"""The runner of a CUDA device, on the CPU with streams, events and pools made up for it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_runner import TEXTS, load_on_cpu, segment, vectors_by_text
from torch.nn.modules.module import register_module_forward_pre_hook

from millpond.checkpoint.resolve import resolve_checkpoint
from millpond.checkpoint.spec import read_spec
from millpond.config import EngineConfig
from millpond.errors import InvalidOption
from millpond.model.pooling_model import PoolingModel
from millpond.model.transformer import Transformer
from millpond.runner.cpu.runner import CpuModelRunner
from millpond.runner.cuda import own_stream
from millpond.runner.cuda import runner as cuda_runner
from millpond.runner.cuda.memory_profile import reserved_bytes
from millpond.runner.cuda.own_stream import OwnStream
from millpond.runner.cuda.pinned_buffers import PinnedBuffers
from millpond.runner.cuda.runner import CudaModelRunner
from millpond.scheduler.batch import Batch
from millpond.scheduler.request import Priority

CPU = torch.device("cpu")


class FakeStream(str):
    """Its name."""

    waits_for: str | None = None

    def wait_stream(self, other: str) -> None:
        self.waits_for = other


@dataclass
class FakeCuda:
    """What `torch.cuda` was asked for, and what is current there."""

    log: list[str] = field(default_factory=list)
    streams: list[str] = field(default_factory=lambda: ["default"])
    """The current one is the last."""
    devices: list[object] = field(default_factory=lambda: [None])
    pools: list[FakePool] = field(default_factory=list)
    streams_made: int = 0

    def make_stream(self, device: torch.device, priority: int) -> FakeStream:
        self.streams_made += 1
        return FakeStream(f"own {self.streams_made}" + " first" * (priority < 0))

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        self.streams.append(name)
        yield
        self.streams.pop()

    @contextmanager
    def device(self, which: object) -> Iterator[None]:
        self.devices.append(which)
        yield
        self.devices.pop()

    @contextmanager
    def use_mem_pool(self, pool: FakePool, device: torch.device) -> Iterator[None]:
        self.pools.append(pool)
        try:
            yield
        finally:
            pool.is_in_use = False


class FakePool:
    """A pool of two segments of an allocator."""

    is_in_use = True

    def snapshot(self) -> list[dict[str, int]]:
        assert not self.is_in_use
        return [{"total_size": 2 << 20}, {"total_size": 20 << 20}]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    class Event:
        def record(self, stream: str) -> None:
            fake.log.append(f"event on {stream}")

        def synchronize(self) -> None:
            fake.log.append("wait")

    def refuse(*_: object) -> None:
        raise AssertionError("it is the process's, not ours")

    made_up = {
        "Event": Event,
        "Stream": fake.make_stream,
        "stream": fake.stream,
        "current_stream": lambda _: fake.streams[-1],
        "device": fake.device,
        "mem_get_info": lambda _: (40 << 30, 80 << 30),
        "MemPool": FakePool,
        "use_mem_pool": fake.use_mem_pool,
        "empty_cache": lambda: fake.log.append("cache emptied"),
        "reset_peak_memory_stats": refuse,
    }
    for name, value in made_up.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(own_stream, "_idle", own_stream._idle.copy())
    monkeypatch.setattr(cuda_runner, "PinnedBuffers", partial(PinnedBuffers, pinned=False))
    own_stream._idle.clear()
    return fake


@pytest.fixture(scope="module")
def on_cpu() -> CpuModelRunner:
    return load_on_cpu()


def runner_of(models: Sequence[PoolingModel], **options: Any) -> CudaModelRunner:
    return CudaModelRunner(models, device=CPU, stream=OwnStream(CPU), **options)


@pytest.fixture
def streamed(on_cpu: CpuModelRunner, cuda: FakeCuda) -> CudaModelRunner:
    return runner_of(on_cpu.models, max_batch_tokens=1024)


def load(folder: Path, **options: Any) -> CudaModelRunner:
    config = EngineConfig(model=str(folder), dtype="float32", **options)
    return CudaModelRunner.load(read_spec(resolve_checkpoint(config.model)), config, CPU)


@pytest.fixture
def seen_streams(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> Iterator[set[tuple[object, str]]]:
    """Every device and stream that was current when a module or a whole model ran."""
    seen: set[tuple[object, str]] = set()

    def noting(run: Callable[..., Any], *arguments: Any) -> Any:
        seen.add((cuda.devices[-1], cuda.streams[-1]))
        return run(*arguments)

    for name in ("packed", "padded"):
        run = getattr(PoolingModel, name)
        monkeypatch.setattr(PoolingModel, name, lambda *them, run=run: noting(run, *them))
    hook = register_module_forward_pre_hook(lambda *_: noting(lambda: None))
    yield seen
    hook.remove()


@pytest.mark.parametrize("name", ["bert", "qwen3", "mpnet"])
def test_all_of_a_load_and_every_batch_run_on_the_engines_own_stream(
    on_cpu: CpuModelRunner,
    checkpoint: Callable[[str], Path],
    cuda: FakeCuda,
    seen_streams: set[tuple[object, str]],
    name: str,
) -> None:
    runner = load(checkpoint(name), warmup=True)
    assert seen_streams == {(CPU, "own 1")}, "weights, checks and the probe of memory"
    assert len(cuda.pools) == 1, "it was probed"
    assert (cuda.devices, cuda.streams) == ([None], ["default"]), "nothing is left behind"
    seen_streams.clear()
    ids = runner.models[0].check_texts((5,))[0]
    piece = segment(on_cpu, TEXTS)
    piece.chunk.ids[:] = int(ids[0])
    runner.collect(runner.launch(Batch(0, (piece,), runner.shapes[0].padded_length(16))))
    assert seen_streams == {(CPU, "own 1")}


def test_the_stream_of_an_engine_that_is_gone_goes_to_the_next(
    on_cpu: CpuModelRunner, checkpoint: Callable[[str], Path], cuda: FakeCuda
) -> None:
    """With the memory that torch's allocator keeps for it."""
    first, second = (runner_of(on_cpu.models, max_batch_tokens=64) for _ in range(2))
    assert [(each._bulk.stream, each._queries.stream) for each in (first, second)] == [
        ("own 1", "own 2 first"),
        ("own 3", "own 4 first"),
    ]
    assert first._queries.stream.waits_for == "own 1", "weights are put into memory there"
    del first
    gc.collect()
    third = runner_of(on_cpu.models, max_batch_tokens=64)
    assert (third._bulk.stream, third._queries.stream) == ("own 1", "own 2 first")
    assert cuda.streams_made == 4
    with pytest.raises(InvalidOption, match="the weights alone take"):
        load(checkpoint("bert"), memory_bytes=1000)
    gc.collect()
    assert (OwnStream(CPU).stream, cuda.streams_made) == ("own 5", 5), "of a load that failed"


def test_what_work_takes_is_read_from_a_pool_of_its_own(cuda: FakeCuda) -> None:
    ran: list[bool] = []
    assert reserved_bytes(lambda: ran.append(cuda.pools[-1].is_in_use), CPU) == 22 << 20
    assert ran == [True], "once, with the pool in use"


def test_cached_memory_is_given_back_where_a_pool_finds_too_little(cuda: FakeCuda) -> None:
    turns = iter([torch.OutOfMemoryError("CUDA out of memory"), None])

    def work() -> None:
        if (error := next(turns)) is not None:
            raise error

    assert reserved_bytes(work, CPU) == 22 << 20
    assert (len(cuda.pools), cuda.log) == (2, ["cache emptied"])


def test_limits_are_those_of_a_device_that_runs_one_batch_and_has_the_next_one_ready(
    on_cpu: CpuModelRunner, cuda: FakeCuda
) -> None:
    limits = runner_of(on_cpu.models, max_batch_tokens=50_000).limits
    assert (limits.max_batch_tokens, limits.depth) == (50_000, 2)
    assert (limits.workers, limits.query_workers, limits.queries_apart) == (1, 1, True)
    fixed = runner_of(on_cpu.models, max_batch_tokens=50_000, batch_invariant=True).limits
    assert fixed.max_batch_tokens == cuda_runner.DETERMINISTIC_ROWS - 1


@pytest.mark.parametrize("promised", [False, True])
def test_the_same_bits_are_promised_only_where_they_were_asked_for(
    streamed: CudaModelRunner, promised: bool
) -> None:
    """What a few rows of a check showed says nothing of a large batch there."""
    streamed.check_batch_invariance(promised=promised)
    assert streamed.routes[0].batch_invariant == promised


def test_a_batch_on_a_stream_is_waited_for_once_and_gives_its_buffers_back(
    on_cpu: CpuModelRunner, streamed: CudaModelRunner, cuda: FakeCuda
) -> None:
    log = cuda.log
    batch = Batch(0, (segment(streamed, TEXTS),))
    expected = on_cpu.collect(on_cpu.launch(batch))
    for round in range(3):
        log.clear()
        handle = streamed.launch(batch)
        assert log == ["event on own 1"], "nothing is waited for"
        assert "free=0" in repr(streamed._buffers), "the device may be reading or writing"
        assert np.array_equal(streamed.collect(handle), expected)
        assert log == ["event on own 1", "wait"]
        assert repr(streamed._buffers) == "PinnedBuffers(free=2, made=2)", round


def test_queries_run_on_a_stream_of_their_own_launched_by_the_calling_thread(
    streamed: CudaModelRunner, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched_by: list[int] = []
    launch = streamed._launch

    def noting(batch: Batch) -> Any:
        launched_by.append(threading.get_ident())
        return launch(batch)

    monkeypatch.setattr(streamed, "_launch", noting)
    for priority, stream in ((Priority.BULK, "own 1"), (Priority.INTERACTIVE, "own 2 first")):
        piece = segment(streamed, TEXTS)
        piece.request.priority = priority
        cuda.log.clear()
        streamed.collect(streamed.launch(Batch(0, (piece,))))
        assert cuda.log == [f"event on {stream}", "wait"]
    of_bulk, of_queries = launched_by
    assert of_bulk != of_queries == threading.get_ident()


def test_one_thread_launches_all_of_a_model_whose_state_changes_as_it_runs(
    on_cpu: CpuModelRunner, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_runner, "is_reentrant", lambda _: False)
    runner = runner_of(on_cpu.models, max_batch_tokens=1024)
    launched_by: set[int] = set()
    launch = runner._launch

    def noting(batch: Batch) -> Any:
        launched_by.add(threading.get_ident())
        return launch(batch)

    monkeypatch.setattr(runner, "_launch", noting)
    for priority in Priority:
        piece = segment(runner, TEXTS)
        piece.request.priority = priority
        runner.collect(runner.launch(Batch(0, (piece,))))
    assert len(launched_by) == 1
    assert threading.get_ident() not in launched_by


def test_two_batches_under_way_share_no_buffer(
    streamed: CudaModelRunner,
) -> None:
    batches = [Batch(0, (segment(streamed, texts),)) for texts in (TEXTS, TEXTS[:2])]
    tickets = [streamed.launch(batch) for batch in batches]
    memory = {buffer.data_ptr() for handle in tickets for buffer in handle.buffers}
    assert len(memory) == 4
    second = streamed.collect(tickets[1])
    assert np.array_equal(streamed.collect(tickets[0])[:2], second)
    assert repr(streamed._buffers) == "PinnedBuffers(free=4, made=4)"


def test_integers_go_up_in_one_copy_and_vectors_come_back_in_one(
    streamed: CudaModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    fetched: list[int] = []
    stage, launched = streamed._stage, streamed._fetch

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
    monkeypatch.setattr(streamed, "_fetch", counting_launched)
    streamed.collect(streamed.launch(Batch(0, (segment(streamed, TEXTS),))))
    assert (sent, fetched) == ([1], [len(TEXTS)])


@pytest.mark.parametrize(
    ("error", "out_of_memory", "fatal"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (MemoryError(), True, False),
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
    streamed: CudaModelRunner, error: Exception, out_of_memory: bool, fatal: bool
) -> None:
    assert streamed.is_out_of_memory(error) is out_of_memory
    assert streamed.is_fatal(error) is fatal


@pytest.mark.parametrize("invariant", [False, True])
def test_padded_texts_have_fixed_shapes_too(
    cuda: FakeCuda,
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    invariant: bool,
) -> None:
    models = load_on_cpu(str(checkpoint("mpnet"))).models
    padded = runner_of(models, max_batch_tokens=63, batch_invariant=invariant)
    shapes = set()
    forward = Transformer.padded

    def noting(encoder: Transformer, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        shapes.add(tuple(ids.shape))
        return forward(encoder, ids, mask)

    monkeypatch.setattr(Transformer, "padded", noting)
    for texts in (["a mill"], ["a mill"] * 3):
        piece = segment(padded, texts)
        padded.collect(padded.launch(Batch(0, (piece,), padded_length=16)))
    assert shapes == ({(4, 16)} if invariant else {(1, 16), (3, 16)})


def test_invariant_rows_fill_to_a_multiple_with_short_sequences(
    on_cpu: CpuModelRunner, cuda: FakeCuda
) -> None:
    fixed = runner_of(on_cpu.models, max_batch_tokens=63, batch_invariant=True)
    for texts in (["a mill"], ["a mill"] * 30, TEXTS):
        piece = segment(on_cpu, texts)
        batch = Batch(0, (piece,))
        assert (piece.tokens + fixed.launch(batch).padded_tokens) % 64 == 0
        for (text, vector), (_, expected) in zip(
            vectors_by_text(fixed, batch), vectors_by_text(on_cpu, batch), strict=True
        ):
            assert np.abs(vector - expected).max() < 1e-6, text
