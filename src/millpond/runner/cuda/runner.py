"""`CudaModelRunner`: batches on a CUDA device, queries on a stream of their own.

A launch does not wait for the device: integers go there and vectors come back through pinned
memory, and while one batch runs the next is launched behind it. What the variable-length kernel
serves runs in buckets, most of them as CUDA graphs. The kernels of queries have a higher priority:
they start as soon as blocks of others end, so a query does not wait for the batch that runs. And
while queries come in, bulk batches leave a few multiprocessors to them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...attention.filled import FilledSequences
from ...attention.packed import PackedSequences
from ...attention.prefix import PrefixIndex, PrefixSlots
from ...attention.varlen import uses_varlen
from ...checkpoint.spec import ModelSpec
from ...config import EngineConfig
from ...errors import summary
from ...model.pooling_model import PooledRows, PoolingModel
from ...model.split.ranks import RankGroup
from ...model.transformer import Transformer
from ...outputs import Rows
from ...scheduler.batch import Batch
from ..base import BatchHandle
from ..cpu.workers import is_reentrant
from ..input_batch import InputBatch, PrefixInputBatch
from ..kv_cache_config import KVCacheConfig
from ..limits import CUDA_BATCH_TOKENS, CUDA_MIN_BATCH_TOKENS, DETERMINISTIC_ROWS, Limits
from ..memory import MemoryBudget
from ..model_runner import LaunchedBatch, TorchModelRunner, wanted_batch_tokens
from .bucketed_forward import MOST_PREFIXED_ROWS
from .buckets import longest_for
from .bulk_share import BulkShare
from .graphs import Agree
from .launch_thread import LaunchThread
from .memory_profile import tokens_that_fit
from .own_stream import OwnStream
from .partial_stream import multiprocessors_for_bulk
from .pinned_buffers import PinnedBuffers
from .plain_runs import TimedRuns
from .stream_forwards import StreamForwards, current

__all__ = ["CudaModelRunner"]

logger = logging.getLogger("millpond")

# Saving fewer is not worth looking texts up and putting their keys in order: tokens of a model with
# layers of 16 million weights (Qwen3-0.6B).
MIN_SAVED_TOKENS = 2048


_CALL_REFUSED = re.compile(r"CU\w+_STATUS_(NOT_SUPPORTED|INVALID_VALUE|ARCH_MISMATCH)")


@dataclass
class _InFlight(LaunchedBatch):
    done: torch.cuda.Event
    buffers: tuple[Tensor, Tensor]
    """Pinned memory the device may still be reading or writing."""


class CudaModelRunner(TorchModelRunner):
    """Runs batches of a model on a CUDA device."""

    def __init__(
        self,
        models: Sequence[PoolingModel],
        *,
        device: torch.device,
        stream: OwnStream,
        max_batch_tokens: int,
        batch_invariant: bool = False,
        prefixes: KVCacheConfig | None = None,
        agree: Agree | None = None,
    ) -> None:
        """`stream` is the one that the models' weights were put into memory on.

        Of a model that several processes hold, `agree` says whether something holds in all. Their
        passes run on one stream: the sums in them have to come in one order everywhere.
        """
        self._invariant_rows = None
        if batch_invariant:
            self._invariant_rows = min(DETERMINISTIC_ROWS, max_batch_tokens + 1)
            max_batch_tokens = self._invariant_rows - 1
        super().__init__(
            models, device=device, max_batch_tokens=max_batch_tokens, prefixes=prefixes
        )
        self.limits = Limits(
            max_batch_tokens=max_batch_tokens,
            min_batch_tokens=CUDA_MIN_BATCH_TOKENS,
            depth=2,
            query_workers=1,
            queries_apart=True,
        )
        self._is_deterministic = batch_invariant
        self._launches = LaunchThread()
        encoders = [model.encoder for model in models]
        self._side_by_side = all(
            is_reentrant(encoder.model) for encoder in encoders if isinstance(encoder, Transformer)
        )
        self._buffers = PinnedBuffers()
        forwards = partial(
            StreamForwards,
            self.models,
            device=device,
            buffers=self._buffers,
            most_tokens=max_batch_tokens,
            invariant_rows=self._invariant_rows,
            cache=self._kv_cache,
            agree=agree,
        )
        self._share = None if batch_invariant or agree is not None else self._share_of_bulk()
        if agree is None:
            self._bulk = forwards(stream=stream, share=self._share, plain_runs=TimedRuns)
            self._queries = forwards(stream=OwnStream(device, priority=-1))
            self._queries.stream.wait_stream(stream.stream)  # weights are put into memory there
        else:
            self._bulk = self._queries = forwards(stream=stream)

    def _share_of_bulk(self) -> BulkShare | None:
        """What bulk batches have beside queries; None where the device is not shared out."""
        count = multiprocessors_for_bulk(self.device)
        if count is None:
            return None
        try:
            stream = OwnStream(self.device, multiprocessors=count)
        except RuntimeError as error:
            logger.info("bulk texts leave no multiprocessors to queries: %s", summary(error))
            return None
        self.limits = replace(self.limits, bulk_multiprocessors=count)
        return BulkShare(stream)

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        config: EngineConfig,
        device: torch.device,
        *,
        ranks: RankGroup | None = None,
        **options: Any,
    ) -> Self:
        """As any runner is, all of it on the stream that batches will run on.

        So they can use the memory that checks and probes have left to torch's allocator.
        """
        stream = OwnStream(device)
        with current(device, stream):
            return super().load(
                spec,
                config,
                device,
                ranks=ranks,
                stream=stream,
                batch_invariant=config.batch_invariant,
                agree=None if ranks is None else ranks.all_of,
                **options,
            )

    @staticmethod
    def _free_and_total_bytes(device: torch.device) -> tuple[int, int]:
        return torch.cuda.mem_get_info(device)

    @staticmethod
    def _sizes(
        models: Sequence[PoolingModel],
        device: torch.device,
        config: EngineConfig,
        budget: MemoryBudget,
    ) -> tuple[int, KVCacheConfig | None]:
        most = MOST_PREFIXED_ROWS - 1  # one row fewer than the largest pass that is captured
        prefixes = KVCacheConfig.of(
            models, budget, saved_tokens=MIN_SAVED_TOKENS, max_batch_tokens=most
        )
        tokens = tokens_that_fit(
            models,
            device,
            budget,
            wanted=wanted_batch_tokens(models, config, CUDA_BATCH_TOKENS),
            is_fixed=config.max_batch_tokens != "auto",
            reserved=0 if prefixes is None else prefixes.reserved(CUDA_BATCH_TOKENS),
            captures=2 if _shares_out(config, device) else 1,
        )
        return tokens, prefixes

    def check_batch_invariance(self, *, promised: bool) -> None:
        """Say in `routes` whether they are batch-invariant, which is only where it is `promised`.

        A batch's size decides about kernels, whatever a few of them show, unless every batch has
        one shape.
        """
        self._set_batch_invariant([promised] * len(self.routes))

    @torch.inference_mode()
    def warm_up(self, *, most_texts: int) -> None:
        """Capture the graphs of queries, which the first of them would wait for."""
        self._queries.warm_up(most_texts=most_texts)
        self._launches.run(self._bulk.take_workspace)
        if self._share is not None:
            self._launches.run(self._share.take_workspace)
        self._launches.run(self._bulk.compile_for_long_texts)

    def _forwards_of(self, batch: Batch) -> StreamForwards:
        return self._bulk if batch.has_bulk else self._queries

    def launch(self, batch: Batch) -> LaunchedBatch:
        """Start a forward pass; it returns before the device is done.

        Queries are launched by the calling thread, which is the one worker that they have, unless
        the model is another one while it runs.
        """
        launch = partial(self._launch_here, batch)
        own_thread = self._side_by_side and not batch.has_bulk
        return launch() if own_thread else self._launches.run(launch)

    def _launch_here(self, batch: Batch) -> LaunchedBatch:
        if self._share is not None and not batch.has_bulk:
            self._share.note_query()
        with self._forwards_of(batch).current():
            return self._launch(batch)

    def _launch_packed(self, batch: Batch, layout: InputBatch) -> LaunchedBatch:
        bucketed = self._forwards_of(batch).buckets[batch.route]
        if bucketed is None:
            return super()._launch_packed(batch, layout)
        run = bucketed.run(layout.ids, layout.lengths, layout.prompt_lengths)
        return self._fetch(run.vectors, layout.order, run.rows - batch.tokens, run.staging)

    def _launch_prefixed(self, batch: Batch, layout: PrefixInputBatch) -> LaunchedBatch:
        bucketed = self._forwards_of(batch).buckets[batch.route]
        if bucketed is None:
            return super()._launch_prefixed(batch, layout)
        assert self._kv_cache is not None
        slots = PrefixSlots(layout.prefixes, layout.read, layout.rows, layout.written)
        index = PrefixIndex.of(layout.lengths, slots, self._kv_cache)
        run = bucketed.run_prefixed(layout.ids, layout.positions, layout.prompt_lengths, index)
        padding = run.rows - batch.computed_tokens
        return self._fetch(run.vectors, layout.order, padding, run.staging)

    def _sequences(
        self, pipeline: PoolingModel, rows: PooledRows, layout: InputBatch
    ) -> PackedSequences | FilledSequences:
        """With boundaries where the variable-length kernel serves what runs in no bucket."""
        found = super()._sequences(pipeline, rows, layout)
        if isinstance(found, FilledSequences) or not uses_varlen(self.device, pipeline.dtype):
            return found
        ends = rows.starts + rows.lengths
        boundaries = torch.cat([rows.starts, ends[-1:]]).to(torch.int32)
        longest = longest_for(
            found.longest,
            is_fixed=self._is_deterministic,
            max_length=pipeline.tokenizer.max_length,
        )
        return replace(found, boundaries=boundaries, longest=longest)

    def _missing_rows(self, tokens: int) -> int:
        return 0 if self._invariant_rows is None else -tokens % self._invariant_rows

    def _padded_rows(self, texts: int, width: int) -> int:
        return max(super()._padded_rows(texts, width), (self._invariant_rows or 0) // width)

    def _stage(self, *arrays: npt.NDArray[np.int64]) -> tuple[Tensor | None, list[Tensor]]:
        sizes = [len(array) for array in arrays]
        staging = self._buffers.take(sum(sizes), torch.int64)
        on_host = staging[: sum(sizes)]
        np.concatenate(arrays, out=on_host.numpy())
        return staging, list(torch.split(on_host.to(self.device, non_blocking=True), sizes))

    def _fetch(
        self,
        vectors: Tensor,
        order: npt.NDArray[np.int64],
        padded_tokens: int,
        staging: Tensor | None,
        lengths: npt.NDArray[np.int64] | None = None,
    ) -> LaunchedBatch:
        assert staging is not None
        rows, columns = len(order) if lengths is None else len(vectors), vectors.shape[1]
        fetched = self._buffers.take(rows * columns, vectors.dtype)
        on_host = fetched[: rows * columns].view(rows, columns)
        on_host.copy_(vectors[:rows], non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))
        buffers = (staging, fetched)
        return _InFlight(on_host, order, padded_tokens, done, buffers, lengths=lengths)

    def collect(self, handle: BatchHandle) -> Rows:
        """Wait for the vectors of a launched batch: float32 `[texts, dimension]`."""
        assert isinstance(handle, _InFlight)
        handle.done.synchronize()
        vectors = super().collect(handle)
        for buffer in handle.buffers:
            self._buffers.give(buffer)
        return vectors

    def is_fatal(self, error: BaseException) -> bool:
        """Whether the device is lost: a CUDA error other than running out of memory.

        What a library refuses (`CUBLAS_STATUS_NOT_SUPPORTED`) concerns the one call.
        """
        if self.is_out_of_memory(error) or _CALL_REFUSED.search(str(error)):
            return False
        says_so = isinstance(error, RuntimeError) and "CUDA error" in str(error)
        return says_so or super().is_fatal(error)

    def free_memory(self) -> None:
        """Give pinned buffers, graphs and what torch's allocator keeps back."""
        self._buffers.clear()
        for forwards in (self._bulk, self._queries):
            forwards.free_memory()
        torch.cuda.empty_cache()


def _shares_out(config: EngineConfig, device: torch.device) -> bool:
    """Whether bulk batches are captured for a part of the device too."""
    if config.batch_invariant or config.tensor_parallel_size > 1:
        return False
    return multiprocessors_for_bulk(device) is not None
