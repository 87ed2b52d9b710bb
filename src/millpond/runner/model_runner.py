"""`TorchModelRunner`: a `Batch` in, tensors, one forward pass, pooled vectors out.

The one place that knows both the scheduler and models. The engine's workers launch on it, each from
a thread of its own; `tokenize` may be called from any. Which batch runs when is not its business.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..attention.packed import PackedSequences
from ..attention.prefix import PrefixedSequences, PrefixIndex, PrefixSlots
from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..cpu.openmp import limited_threads, may_use_several
from ..cpu.row_buckets import FEWEST_ROWS, whole_rows
from ..model.build import load_models
from ..model.device import choose_device
from ..model.pooling_model import PooledRows, PoolingModel
from ..model.transformer import Transformer
from ..scheduler.batch import Batch
from ..scheduler.batch_shape import BatchShape
from ..scheduler.prefix_cache import PrefixCacheConfig
from . import batch_invariance
from .base import BatchHandle, FloatArray
from .batch_invariance import is_batch_invariant
from .cpu_workers import CpuWorkers
from .cuda.bucketed_forward import bucketed_forwards
from .cuda.launch_thread import LaunchThread
from .cuda.pinned_buffers import PinnedBuffers
from .input_batch import InputBatch, PrefixInputBatch
from .kv_cache_config import KVCacheConfig
from .limits import (
    BATCH_TOKENS,
    DETERMINISTIC_ROWS,
    MIN_BATCH_TOKENS,
    Limits,
    max_batch_tokens_for,
)
from .memory import MemoryBudget
from .thread_state import is_plain_thread, on_plain_thread

__all__ = ["TorchModelRunner"]

_CALL_REFUSED = re.compile(r"CU\w+_STATUS_(NOT_SUPPORTED|INVALID_VALUE|ARCH_MISMATCH)")


@dataclass
class _Launched:
    vectors: Tensor
    order: npt.NDArray[np.int64]
    padded_tokens: int
    done: torch.cuda.Event | None = None
    buffers: tuple[Tensor, ...] = ()
    """Pinned memory the device may still be reading or writing."""


def _cpu_workers(
    models: Sequence[PoolingModel], device: torch.device, max_batch_tokens: int
) -> CpuWorkers | None:
    if device.type != "cpu":
        return None
    encoders = [pipeline.encoder for pipeline in models]
    modules = [encoder.model for encoder in encoders if isinstance(encoder, Transformer)]
    return CpuWorkers.for_models(modules, max_batch_tokens=max_batch_tokens)


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream of our own, so that nobody else's work on the device waits for ours."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes a GPU the current one: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class TorchModelRunner:
    """Runs batches of a model's models, one per route, on one device."""

    def __init__(
        self,
        models: Sequence[PoolingModel],
        *,
        device: torch.device,
        max_batch_tokens: int,
        batch_invariant: bool = False,
        prefixes: KVCacheConfig | None = None,
        threads: CpuWorkers | None = None,
    ) -> None:
        self.models = tuple(models)
        self.routes = tuple(pipeline.info() for pipeline in models)
        self.device = device
        self._invariant_rows = None
        if batch_invariant and device.type == "cuda":
            self._invariant_rows = min(DETERMINISTIC_ROWS, max_batch_tokens + 1)
            max_batch_tokens = self._invariant_rows - 1
        self.limits = Limits(
            max_batch_tokens=max_batch_tokens,
            min_batch_tokens=MIN_BATCH_TOKENS.get(device.type, 64),
            depth=2 if device.type == "cuda" else 1,
            workers=1 if threads is None else threads.workers,
            query_workers=0 if threads is None else threads.query_workers,
        )
        self.shapes = tuple(
            BatchShape(pipeline.pad_to, pipeline.tokenizer.max_length) for pipeline in models
        )
        self._stream = _new_stream(device)
        # On a CPU passes run side by side, each on the thread that wants it.
        self._launches = LaunchThread() if self.limits.depth > 1 else None
        self._buffers = PinnedBuffers(pinned=self._stream is not None)
        self._kv_cache = None if prefixes is None else prefixes.allocate()
        self._bucketed = bucketed_forwards(
            self.models,
            device=device,
            buffers=self._buffers,
            most_tokens=max_batch_tokens,
            invariant_rows=self._invariant_rows,
            cache=self._kv_cache,
        )
        self._prefix_cache_config = None if prefixes is None else prefixes.budget
        self._threads = threads
        if self._stream is not None:  # what is in memory by now was put there on another stream
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @classmethod
    def load(cls, spec: ModelSpec, config: EngineConfig) -> TorchModelRunner:
        """Load a model onto its device. Raises `ModelError` and `InvalidOption`."""
        return on_plain_thread(partial(cls._load, spec, config))

    @classmethod
    def _load(cls, spec: ModelSpec, config: EngineConfig) -> TorchModelRunner:
        (name,) = config.device_names  # of several, each has a configuration of its own
        device = choose_device(name)
        with _current(device):
            return cls._load_on(device, spec, config)

    @classmethod
    def _load_on(
        cls, device: torch.device, spec: ModelSpec, config: EngineConfig
    ) -> TorchModelRunner:
        memory = MemoryBudget(config.memory_utilization, config.memory_bytes)
        models = load_models(spec, config, device)
        prefixes = KVCacheConfig.of(models, device, memory)
        max_batch_tokens = max_batch_tokens_for(
            models,
            device,
            memory,
            wanted=config.max_batch_tokens,
            reserved=0 if prefixes is None else prefixes.reserved(BATCH_TOKENS[device.type]),
        )
        runner = cls(
            models,
            device=device,
            max_batch_tokens=max_batch_tokens,
            batch_invariant=config.batch_invariant,
            prefixes=prefixes,
            threads=_cpu_workers(models, device, max_batch_tokens),
        )
        runner.check_batch_invariance(promised=config.batch_invariant)
        if config.warmup:
            runner.warm_up()
        return runner

    def check_batch_invariance(self, *, promised: bool) -> None:
        """Find out which routes are batch-invariant, and say so in `routes`.

        On a GPU the batch decides about kernels, whatever a few of them show, unless every batch
        has one shape, which is `promised` then.
        """
        if self.device.type == "cuda":
            found = [promised] * len(self.routes)
        else:
            # On a thread of its own, with which the OpenMP threads end that it made.
            with ThreadPoolExecutor(1, thread_name_prefix="millpond-check") as checks:
                found = list(checks.map(self._is_batch_invariant, range(len(self.routes))))
        self.routes = tuple(
            replace(info, batch_invariant=same)
            for info, same in zip(self.routes, found, strict=True)
        )

    def _is_batch_invariant(self, route: int) -> bool:
        pipeline = self.models[route]
        threads: Sequence[int | None] = (None,) if self._threads is None else self._threads.counts
        on_cpu = self.device.type == "cpu"
        if on_cpu and not pipeline.has_invariant_operators([n for n in threads if n is not None]):
            return False
        return is_batch_invariant(
            self._run_on,
            pipeline.check_texts(batch_invariance.LENGTHS),
            route=route,
            shape=self.shapes[route],
            threads=threads,
            prefixes=self._prefix_cache_config,
        )

    def _run_on(self, batch: Batch, threads: int | None) -> FloatArray:
        with contextlib.nullcontext() if threads is None else limited_threads(threads):
            return self.collect(self._launch(batch))

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Prepare for the batch sizes of queries, which the first of them would wait for."""
        for forward in filter(None, self._bucketed):
            with torch.cuda.stream(self._stream):
                forward.warm_up()

    def can_run_inline(self, tokens: int) -> bool:
        """Whether a caller's thread may launch a text of so many tokens."""
        if self._threads is None or not self._threads.side_by_side:
            return False
        if self._prefix_cache_config is not None or not is_plain_thread():
            return False
        return may_use_several() or self._threads.wanted(tokens, queries=True) == 1

    @property
    def prefix_cache_config(self) -> PrefixCacheConfig | None:
        return self._prefix_cache_config

    @property
    def device_name(self) -> str:
        return str(self.device)

    @property
    def dtype_name(self) -> str:
        return self.models[0].dtype_name

    def launch(self, batch: Batch) -> _Launched:
        """Start a forward pass; on CUDA it returns before the device is done."""
        if self._launches is None:
            return self._launch_here(batch)
        return self._launches.run(partial(self._launch_here, batch))

    def _launch_here(self, batch: Batch) -> _Launched:
        with _current(self.device), self._place_of(batch):
            return self._launch(batch)

    @torch.inference_mode()
    def _launch(self, batch: Batch) -> _Launched:
        if batch.uses_prefixes:
            return self._launch_prefixed(batch)
        layout = InputBatch.of(batch)
        if self.models[batch.route].pad_to is None:
            return self._launch_packed(batch, layout)
        return self._launch_padded(batch, layout)

    def _place_of(self, batch: Batch) -> contextlib.AbstractContextManager[object]:
        """The threads or the stream it runs on."""
        if self._threads is not None:
            queries = not batch.has_bulk
            tokens, texts = batch.computed_tokens, batch.texts
            return self._threads.running(tokens, queries=queries, texts=texts)
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _launch_packed(self, batch: Batch, layout: InputBatch) -> _Launched:
        pipeline, bucketed = self.models[batch.route], self._bucketed[batch.route]
        if bucketed is not None:
            run = bucketed.run(layout.ids, layout.lengths, layout.prompt_lengths)
            return self._launched(run.vectors, layout.order, run.rows - batch.tokens, run.staging)
        lengths, starts = layout.lengths, np.cumsum(layout.lengths) - layout.lengths
        positions = np.arange(batch.tokens) - np.repeat(starts, lengths)
        missing = 0 if pipeline.is_static else self._missing_rows(batch.tokens)
        ids = layout.ids
        if missing:  # they belong to no sequence
            ids = np.append(ids, np.full(missing, pipeline.tokenizer.pad_id))
            positions = np.append(positions, np.zeros(missing, dtype=np.int64))
        staging, (device_ids, device_positions, *texts) = self._stage(
            ids, positions, starts, lengths, layout.prompt_lengths
        )
        sequences = None
        if not pipeline.is_static:
            one_by_one = self._invariant_rows is not None
            sequences = PackedSequences.of(lengths, deterministic=one_by_one)
        vectors = pipeline.packed(device_ids, device_positions, sequences, PooledRows(*texts))
        return self._launched(vectors, layout.order, missing, staging)

    def _launch_prefixed(self, batch: Batch) -> _Launched:
        assert self._kv_cache is not None
        assert self._prefix_cache_config is not None
        pipeline, bucketed = self.models[batch.route], self._bucketed[batch.route]
        layout = PrefixInputBatch.of(batch, self._prefix_cache_config.block_tokens)
        slots = PrefixSlots(layout.prefixes, layout.read, layout.rows, layout.written)
        if bucketed is not None:
            index = PrefixIndex.of(layout.lengths, slots, self._kv_cache)
            run = bucketed.run_prefixed(layout.ids, layout.positions, layout.prompt_lengths, index)
            padding = run.rows - batch.computed_tokens
            return self._launched(run.vectors, layout.order, padding, run.staging)
        fillers = self._filler_lengths(layout.lengths)
        nothing = np.zeros(len(fillers), dtype=np.int64)
        slots = replace(slots, lengths=np.append(layout.prefixes, nothing))
        lengths = np.append(layout.lengths, fillers).astype(np.int64)
        index = PrefixIndex.of(lengths, slots, self._kv_cache)
        ids = np.append(layout.ids, np.full(sum(fillers), pipeline.tokenizer.pad_id))
        positions = np.concatenate([layout.positions, *map(np.arange, fillers)])
        starts = np.cumsum(layout.lengths) - layout.lengths
        texts = (starts, layout.lengths, layout.prompt_lengths)
        staging, (device_ids, device_positions, *rest) = self._stage(
            ids, positions, *texts, *index.arrays
        )
        rows, arrays = PooledRows(*rest[: len(texts)]), rest[len(texts) :]
        sequences = PrefixedSequences.of(index, self._kv_cache, arrays)
        vectors = pipeline.packed(device_ids, device_positions, sequences, rows)
        return self._launched(vectors, layout.order, sum(fillers), staging)

    def _launch_padded(self, batch: Batch, layout: InputBatch) -> _Launched:
        pipeline = self.models[batch.route]
        assert batch.padded_length is not None
        width, texts = batch.padded_length, batch.texts
        rows = max(texts, (self._invariant_rows or 0) // width, -(-FEWEST_ROWS // width))
        lengths = np.append(layout.lengths, np.full(rows - texts, width))
        mask = np.arange(width) < lengths[:, None]
        ids = np.full((rows, width), pipeline.tokenizer.pad_id, dtype=np.int64)
        ids[:texts][mask[:texts]] = layout.ids
        starts = np.arange(texts) * width
        flat_mask = mask.astype(np.int64).ravel()
        staging, (device_ids, device_mask, *places) = self._stage(
            ids.ravel(), flat_mask, starts, layout.lengths, layout.prompt_lengths
        )
        vectors = pipeline.padded(
            device_ids.view(rows, width), device_mask.view(rows, width), PooledRows(*places)
        )
        return self._launched(vectors, layout.order, rows * width - batch.tokens, staging)

    def _missing_rows(self, tokens: int) -> int:
        """Rows to add so that a pass has one of the numbers of rows that it is prepared for."""
        if self._invariant_rows is not None:
            return -tokens % self._invariant_rows
        return whole_rows(tokens) - tokens if self.device.type == "cpu" else 0

    def _filler_lengths(self, lengths: npt.NDArray[np.int64]) -> Sequence[int]:
        """The same rows as sequences, most of them of a length that shares an attention call."""
        shortest = int(lengths[-1])
        whole, rest = divmod(self._missing_rows(int(lengths.sum())), shortest)
        return [shortest] * whole + [rest] * (rest > 0)

    def _stage(self, *arrays: npt.NDArray[np.int64]) -> tuple[Tensor | None, list[Tensor]]:
        """All integers of a batch to the device in one copy: what it copies from, and each."""
        sizes = [len(array) for array in arrays]
        if self._stream is None and self.device.type == "cpu":
            return None, [torch.from_numpy(array) for array in arrays]
        if self._stream is None:
            joined = torch.from_numpy(np.concatenate(arrays))
            return None, list(torch.split(joined.to(self.device), sizes))
        staging = self._buffers.take(sum(sizes), torch.int64)
        on_host = staging[: sum(sizes)]
        np.concatenate(arrays, out=on_host.numpy())
        return staging, list(torch.split(on_host.to(self.device, non_blocking=True), sizes))

    def _launched(
        self,
        vectors: Tensor,
        order: npt.NDArray[np.int64],
        padded_tokens: int,
        staging: Tensor | None,
    ) -> _Launched:
        texts = len(order)
        if self._stream is None or staging is None:
            return _Launched(vectors[:texts].cpu(), order, padded_tokens)
        fetched = self._buffers.take(texts * vectors.shape[1], vectors.dtype)
        on_host = fetched[: texts * vectors.shape[1]].view(texts, -1)
        on_host.copy_(vectors[:texts], non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(self._stream)
        return _Launched(on_host, order, padded_tokens, done, (staging, fetched))

    def collect(self, handle: BatchHandle) -> FloatArray:
        """Wait for the vectors of a launched batch: float32 `[texts, dimension]`."""
        assert isinstance(handle, _Launched)
        if handle.done is not None:
            handle.done.synchronize()
        vectors = np.empty(handle.vectors.shape, dtype=np.float32)
        vectors[handle.order] = handle.vectors.numpy()
        for buffer in handle.buffers:
            self._buffers.give(buffer)
        return vectors

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch could succeed where this error was raised."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        # torch's CPU allocator raises a plain RuntimeError, as do cuBLAS and cuDNN.
        says = str(error)
        return isinstance(error, RuntimeError) and (
            "can't allocate memory" in says
            or "CUDA error: out of memory" in says
            or "STATUS_ALLOC_FAILED" in says
        )

    def is_fatal(self, error: BaseException) -> bool:
        """Whether the device is lost: a CUDA error other than running out of memory.

        What a library refuses (`CUBLAS_STATUS_NOT_SUPPORTED`) concerns the one call.
        """
        if self.is_out_of_memory(error) or _CALL_REFUSED.search(str(error)):
            return False
        device_error = getattr(torch, "AcceleratorError", None)
        if device_error is not None and isinstance(error, device_error):
            return True
        return isinstance(error, RuntimeError) and "CUDA error" in str(error)

    def free_memory(self) -> None:
        """Give cached device memory back after running out of it."""
        self._buffers.clear()
        for forward in filter(None, self._bucketed):
            forward.free_memory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __repr__(self) -> str:
        kinds = ", ".join(route.execution for route in self.routes)
        device = str(self.device)
        return f"TorchModelRunner(device={device!r}, models=[{kinds}], depth={self.limits.depth})"
