"""`TorchModelRunner`: a `Batch` in, tensors, one forward pass, pooled vectors out.

The one place that knows both the scheduler and models. This is what every kind of device shares,
and all that a Mac's GPU needs; `cpu.runner` and `cuda.runner` add what theirs do otherwise. Which
batch runs when is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..attention.filled import FilledSequences
from ..attention.packed import PackedSequences
from ..attention.prefix import PrefixedSequences, PrefixIndex, PrefixSlots
from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..cpu.row_buckets import FEWEST_ROWS
from ..model.build import load_models
from ..model.pooling_model import PooledRows, PoolingModel
from ..model.split.ranks import RankGroup
from ..outputs import RaggedRows, Rows
from ..pooler.sparse import SparseRows
from ..scheduler.batch import Batch, BatchShape
from .base import BatchHandle
from .batch_invariance import LENGTHS, is_batch_invariant
from .host import host_memory
from .input_batch import InputBatch, PrefixInputBatch
from .kv_cache_config import KVCacheConfig
from .limits import MPS_BATCH_TOKENS, MPS_MIN_BATCH_TOKENS, STATIC_BATCH_TOKENS, Limits
from .memory import DeviceMemory, MemoryBudget, weight_bytes

__all__ = ["LaunchedBatch", "TorchModelRunner", "wanted_batch_tokens"]

MOST_WARMED_TEXTS = 64


@dataclass
class LaunchedBatch:
    """A pass whose vectors are on the host, or are being copied there."""

    vectors: Tensor
    order: npt.NDArray[np.int64]
    """Place in the batch of the *i*-th vector, or of the *i*-th text's."""
    padded_tokens: int
    lengths: npt.NDArray[np.int64] | None = field(default=None, kw_only=True)
    """Vectors of each text, where a text has several."""


class TorchModelRunner:
    """Runs batches of a model, with a `PoolingModel` for each route, on one device."""

    _is_deterministic = False
    """Whether a text is attended to without those beside it in the batch."""
    fills_one_by_one = False
    """Whether texts with hidden tokens attend in a call each, for their bits."""

    def __init__(
        self,
        models: Sequence[PoolingModel],
        *,
        device: torch.device,
        max_batch_tokens: int,
        prefixes: KVCacheConfig | None = None,
    ) -> None:
        self.models = tuple(models)
        self.routes = tuple(model.info() for model in models)
        self.device = device
        self.limits = Limits(
            max_batch_tokens=max_batch_tokens, min_batch_tokens=MPS_MIN_BATCH_TOKENS
        )
        self.shapes = tuple(
            BatchShape(model.pad_to, model.tokenizer.max_length) for model in models
        )
        self.prefix_cache_config = None if prefixes is None else prefixes.budget
        self._kv_cache = None if prefixes is None else prefixes.allocate()

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        config: EngineConfig,
        device: torch.device,
        *,
        sharers: int = 1,
        ranks: RankGroup | None = None,
        **own: Any,
    ) -> Self:
        """Load a model onto a device of the class's kind, whose memory N processes share alike.

        With `ranks`, a part of it. `own` are arguments of the class that others do not have.
        Raises `ModelError` and `InvalidOption`.
        """
        models = load_models(spec, config, device, ranks)
        free, total = (known // sharers for known in cls._free_and_total_bytes(device))
        if ranks is not None:  # blocks of a prefix cache have the same numbers on all
            free, total = ranks.least([free, total])
        memory = DeviceMemory(free, total, weight_bytes(models))
        budget = MemoryBudget(memory, config.memory_utilization, config.memory_bytes)
        tokens, prefixes = cls._sizes(models, device, config, budget)
        if ranks is not None:
            (tokens,) = ranks.least([tokens])
        runner = cls(models, device=device, max_batch_tokens=tokens, prefixes=prefixes, **own)
        # Of sums among GPUs no check has shown it.
        runner.check_batch_invariance(promised=config.batch_invariant and ranks is None)
        runner.warm_up(most_texts=MOST_WARMED_TEXTS if config.warmup else 1)
        return runner

    @staticmethod
    def _free_and_total_bytes(device: torch.device) -> tuple[int, int]:
        """What memory the device has; zeros where there is no way to ask."""
        return host_memory()

    @staticmethod
    def _sizes(
        models: Sequence[PoolingModel],
        device: torch.device,
        config: EngineConfig,
        budget: MemoryBudget,
    ) -> tuple[int, KVCacheConfig | None]:
        """Tokens of the largest batch, and the room for a prefix cache."""
        tokens = wanted_batch_tokens(models, config, MPS_BATCH_TOKENS)
        return tokens, KVCacheConfig.of(models, budget)

    def check_batch_invariance(self, *, promised: bool) -> None:
        """Find out which routes are batch-invariant, and say so in `routes`.

        Where every batch has one shape it is `promised`.
        """
        # On a thread of its own, with which the OpenMP threads end that it made.
        with ThreadPoolExecutor(1, thread_name_prefix="millpond-check") as checks:
            self._set_batch_invariant(checks.submit(self._check_routes).result())

    def _check_routes(self) -> Sequence[bool]:
        return [self._is_batch_invariant(route) for route in range(len(self.models))]

    def _set_batch_invariant(self, found: Iterable[bool]) -> None:
        self.routes = tuple(
            replace(route, batch_invariant=same)
            for route, same in zip(self.routes, found, strict=True)
        )

    def _is_batch_invariant(self, route: int, threads: Sequence[int | None] = (None,)) -> bool:
        return is_batch_invariant(
            self._run_on,
            self.models[route].check_texts(LENGTHS),
            route=route,
            shape=self.shapes[route],
            threads=threads,
            prefixes=self.prefix_cache_config,
        )

    def _run_on(self, batch: Batch, threads: int | None) -> Rows:
        return self.collect(self._launch(batch))

    def warm_up(self, *, most_texts: int) -> None:
        """Prepare for `most_texts` queries at a time, which the first of them would wait for."""

    def can_run_inline(self, batch: Batch) -> bool:
        """Whether a caller's thread may launch this batch."""
        return False

    @property
    def device_name(self) -> str:
        return str(self.device)

    @property
    def dtype_name(self) -> str:
        return self.models[0].dtype_name

    def launch(self, batch: Batch) -> LaunchedBatch:
        """Start a forward pass."""
        return self._launch(batch)

    @torch.inference_mode()
    def _launch(self, batch: Batch) -> LaunchedBatch:
        if batch.uses_prefixes:
            assert self.prefix_cache_config is not None
            block_tokens = self.prefix_cache_config.block_tokens
            return self._launch_prefixed(batch, PrefixInputBatch.of(batch, block_tokens))
        layout, model = InputBatch.of(batch), self.models[batch.route]
        if model.tells_tokens_apart:
            layout = layout.read_by(model)
        if model.pad_to is None:
            return self._launch_packed(batch, layout)
        return self._launch_padded(batch, layout)

    def _launch_packed(self, batch: Batch, layout: InputBatch) -> LaunchedBatch:
        pipeline = self.models[batch.route]
        lengths, tokens = layout.lengths, batch.tokens
        starts = lengths.cumsum() - lengths
        missing = 0 if pipeline.is_static else self._missing_rows(tokens)
        ids = np.empty(tokens + missing, dtype=np.int64)
        ids[:tokens], ids[tokens:] = layout.ids, pipeline.tokenizer.pad_id
        positions = np.arange(tokens + missing)
        positions[:tokens] -= starts.repeat(lengths)
        positions[tokens:] = 0  # rows that belong to no sequence
        kept = () if layout.kept is None else layout.kept_from(starts)
        texts = (starts, lengths, layout.prompt_lengths)
        staging, (device_ids, device_positions, *places) = self._stage(
            ids, positions, *texts, *kept
        )
        rows = PooledRows(*places)
        sequences = None if pipeline.is_static else self._sequences(pipeline, rows, layout)
        found = pipeline.packed(device_ids, device_positions, sequences, rows)
        vectors, counts = _with_counts(found, layout.counts)
        return self._fetch(vectors, layout.order, missing, staging, counts)

    def _sequences(
        self, pipeline: PoolingModel, rows: PooledRows, layout: InputBatch
    ) -> PackedSequences | FilledSequences:
        """How the texts of a packed row attend; where they stand is in `rows` on the device."""
        if layout.hidden is not None:
            alone = self._is_deterministic or self.fills_one_by_one
            return FilledSequences(layout.lengths, layout.hidden, alone=alone)
        return PackedSequences.of(layout.lengths, deterministic=self._is_deterministic)

    def _launch_prefixed(self, batch: Batch, layout: PrefixInputBatch) -> LaunchedBatch:
        assert self._kv_cache is not None
        pipeline = self.models[batch.route]
        fillers = self._filler_lengths(layout.lengths)
        nothing = np.zeros(len(fillers), dtype=np.int64)
        slots = PrefixSlots(
            np.append(layout.prefixes, nothing), layout.read, layout.rows, layout.written
        )
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
        vectors, counts = _with_counts(
            pipeline.packed(device_ids, device_positions, sequences, rows), None
        )
        return self._fetch(vectors, layout.order, sum(fillers), staging, counts)

    def _launch_padded(self, batch: Batch, layout: InputBatch) -> LaunchedBatch:
        pipeline = self.models[batch.route]
        assert batch.padded_length is not None
        width, texts = batch.padded_length, batch.texts
        rows = self._padded_rows(texts, width)
        lengths = np.append(layout.lengths, np.full(rows - texts, width))
        mask = np.arange(width) < lengths[:, None]
        ids = np.full((rows, width), pipeline.tokenizer.pad_id, dtype=np.int64)
        ids[:texts][mask[:texts]] = layout.ids
        if layout.hidden is not None:
            mask[:texts][mask[:texts]] = ~layout.hidden
        starts = np.arange(texts) * width
        flat_mask = mask.astype(np.int64).ravel()
        staging, (device_ids, device_mask, *places) = self._stage(
            *(ids.ravel(), flat_mask, starts, layout.lengths, layout.prompt_lengths),
            *layout.kept_from(starts),
        )
        device_ids, device_mask = (each.view(rows, width) for each in (device_ids, device_mask))
        found = pipeline.padded(device_ids, device_mask, PooledRows(*places))
        vectors, counts = _with_counts(found, layout.counts)
        padding = rows * width - batch.tokens
        return self._fetch(vectors, layout.order, padding, staging, counts)

    def _missing_rows(self, tokens: int) -> int:
        """Rows to add so that a pass has one of the numbers of rows that it is prepared for."""
        return 0

    def _padded_rows(self, texts: int, width: int) -> int:
        """Rows for that many tokens and texts, filled up in the same way."""
        return max(texts, -(-FEWEST_ROWS // width))

    def _filler_lengths(self, lengths: npt.NDArray[np.int64]) -> Sequence[int]:
        """The same rows as sequences, most of them of a length that shares an attention call."""
        shortest = int(lengths[-1])
        whole, rest = divmod(self._missing_rows(int(lengths.sum())), shortest)
        return [shortest] * whole + [rest] * (rest > 0)

    def _stage(self, *arrays: npt.NDArray[np.int64]) -> tuple[Tensor | None, list[Tensor]]:
        """All integers of a batch to the device in one copy: what it copies from, and each.

        Without the first where nothing needs to keep it.
        """
        joined = torch.from_numpy(np.concatenate(arrays)).to(self.device)
        return None, list(torch.split(joined, [len(array) for array in arrays]))

    def _fetch(
        self,
        vectors: Tensor,
        order: npt.NDArray[np.int64],
        padded_tokens: int,
        staging: Tensor | None,
        lengths: npt.NDArray[np.int64] | None = None,
    ) -> LaunchedBatch:
        """The vectors of a pass to the host: `[≥ texts, dimension]`, or as many a text as
        `lengths` says."""
        texts = vectors[: len(order)] if lengths is None else vectors
        return LaunchedBatch(texts.cpu(), order, padded_tokens, lengths=lengths)

    def collect(self, handle: BatchHandle) -> Rows:
        """Wait for the vectors of a launched batch: float32 `[texts, dimension]`."""
        assert isinstance(handle, LaunchedBatch)
        if handle.lengths is not None:
            offsets = np.concatenate(([0], np.cumsum(handle.lengths)))
            return RaggedRows(handle.vectors.numpy(), offsets).at(np.argsort(handle.order))
        vectors = np.empty(handle.vectors.shape, dtype=np.float32)
        vectors[handle.order] = handle.vectors.numpy()
        return vectors

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch could succeed where this error was raised."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        # torch's allocators of a CPU and of MPS raise a plain RuntimeError, as do libraries.
        return isinstance(error, RuntimeError) and any(
            words in str(error)
            for words in ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
        )

    def is_fatal(self, error: BaseException) -> bool:
        """Whether the device is lost: an error of its own, other than running out of memory."""
        return isinstance(error, torch.AcceleratorError) and not self.is_out_of_memory(error)

    def free_memory(self) -> None:
        """Give cached device memory back after running out of it."""

    @property
    def pids(self) -> tuple[int, ...]:
        return ()

    def look_for_queries(self, has_waiting: Callable[[], bool]) -> None:
        """Nothing where ingestion does not yield to queries."""

    def delivered(self) -> None:
        """What came of the calling thread's last batch is with its callers."""

    def tell_when_lost(self, tell: Callable[[Exception], object]) -> None:
        """A lost device shows in the next batch."""

    def close(self, *, wait: bool = True) -> None:
        """All it holds goes with this object."""

    def __repr__(self) -> str:
        kinds = ", ".join(route.execution for route in self.routes)
        depth = self.limits.depth
        return f"{type(self).__name__}({self.device_name!r}, models=[{kinds}], depth={depth})"


def _with_counts(
    found: Tensor | SparseRows, counts: npt.NDArray[np.int64] | None
) -> tuple[Tensor, npt.NDArray[np.int64] | None]:
    """What a model gave, and how many rows each text has where that is not one."""
    if isinstance(found, SparseRows):
        return found.rows, found.counts.cpu().numpy()
    return found, counts


def wanted_batch_tokens(models: Sequence[PoolingModel], config: EngineConfig, most: int) -> int:
    """What the configuration says, or `most`, or what suits models without a transformer."""
    if config.max_batch_tokens != "auto":
        return config.max_batch_tokens
    is_static = all(model.is_static for model in models)
    return STATIC_BATCH_TOKENS if is_static else most
