"""`CpuModelRunner`: passes side by side on a CPU, each on threads of its own.

A pass runs on the thread that launches it, which may be a caller's, with as many of OpenMP's
threads as `CpuWorkers` gives it, and has one of few numbers of rows. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...attention.compiled import load_kernel, without_loading_kernels
from ...config import EngineConfig
from ...cpu.openmp import limited_threads, may_use_several
from ...cpu.row_buckets import FEW_ROWS, FEWEST_ROWS, whole_rows
from ...model.pooling_model import PoolingModel
from ...model.transformer import Transformer
from ...outputs import Rows
from ...scheduler.batch import Batch
from ..base import BatchHandle
from ..kv_cache_config import KVCacheConfig
from ..limits import CPU_MIN_BATCH_TOKENS, Limits, cpu_batch_tokens
from ..memory import MemoryBudget
from ..model_runner import LaunchedBatch, TorchModelRunner, wanted_batch_tokens
from .workers import CpuWorkers

__all__ = ["CpuModelRunner", "is_plain_thread"]


class CpuModelRunner(TorchModelRunner):
    """Runs batches of a model on the CPU."""

    fills_one_by_one = True  # one call for several gives some heads other bits

    def __init__(
        self, models: Sequence[PoolingModel], *, max_batch_tokens: int, **options: Any
    ) -> None:
        super().__init__(models, max_batch_tokens=max_batch_tokens, **options)
        encoders = [model.encoder for model in models]
        modules = [encoder.model for encoder in encoders if isinstance(encoder, Transformer)]
        self._workers = CpuWorkers.for_models(modules, max_batch_tokens=max_batch_tokens)
        self._wants_kernel = False  # which checks at load do without
        self.limits = Limits(
            max_batch_tokens=max_batch_tokens,
            min_batch_tokens=CPU_MIN_BATCH_TOKENS,
            workers=1 if self._workers is None else self._workers.workers,
            query_workers=0 if self._workers is None else self._workers.query_workers,
        )
        self.fewest_rows = FEWEST_ROWS
        self._fewest_texts = max(model.fewest_texts(self._thread_counts) for model in models)

    @property
    def _thread_counts(self) -> Sequence[int]:
        """Numbers of threads that a pass may take; none where it is not for us to say."""
        return () if self._workers is None else list(self._workers.counts)

    @staticmethod
    def _sizes(
        models: Sequence[PoolingModel],
        device: torch.device,
        config: EngineConfig,
        budget: MemoryBudget,
    ) -> tuple[int, KVCacheConfig | None]:
        most = cpu_batch_tokens(
            columns=max(model.encoder.width for model in models),
            in_int8=all(model.dtype_name == "int8" for model in models),
            threads=torch.get_num_threads(),
        )
        return wanted_batch_tokens(models, config, most), KVCacheConfig.of(models, budget)

    def _check_routes(self) -> Sequence[bool]:
        with without_loading_kernels() as left_out:
            found = self._checked_routes()
        self._wants_kernel = left_out.kernel
        return found

    def _checked_routes(self) -> Sequence[bool]:
        if all(model.may_have_few_rows(self._thread_counts) for model in self.models):
            self.fewest_rows = FEW_ROWS
            found = super()._check_routes()
            if all(found):
                return found
            self.fewest_rows = FEWEST_ROWS
        return super()._check_routes()

    def _is_batch_invariant(self, route: int, threads: Sequence[int | None] = (None,)) -> bool:
        counts = self._thread_counts
        if not self.models[route].has_invariant_operators(
            counts, few_rows=self.fewest_rows < FEWEST_ROWS
        ):
            return False
        return super()._is_batch_invariant(route, counts or threads)

    def warm_up(self, *, most_texts: int) -> None:
        """With several texts, read what only long ones need."""
        if most_texts > 1 and self._wants_kernel:
            load_kernel()

    def _padded_rows(self, texts: int, width: int) -> int:
        return max(super()._padded_rows(texts, width), self._fewest_texts)

    def _run_on(self, batch: Batch, threads: int | None) -> Rows:
        if threads is None:
            return super()._run_on(batch, threads)
        with limited_threads(threads):
            return super()._run_on(batch, threads)

    def can_run_inline(self, batch: Batch) -> bool:
        """Whether a caller's thread may launch this batch."""
        if self._workers is None or not self._workers.side_by_side:
            return False
        if self.prefix_cache_config is not None or not is_plain_thread():
            return False
        if may_use_several():
            return True
        queries = not batch.has_bulk
        return self._workers.wanted(batch.tokens, queries=queries, texts=batch.texts) == 1

    def launch(self, batch: Batch) -> LaunchedBatch:
        """Run a forward pass on the calling thread."""
        if self._workers is None:
            return self._launch(batch)
        tokens, queries = batch.computed_tokens, not batch.has_bulk
        with self._workers.running(tokens, queries=queries, texts=batch.texts):
            return self._launch(batch)

    def look_for_queries(self, has_waiting: Callable[[], bool]) -> None:
        """Ingestion yields as soon as `has_waiting()`."""
        if self._workers is not None:
            self._workers.look_for_queries(has_waiting)

    def delivered(self) -> None:
        """What came of the calling thread's last batch is with its callers."""
        if self._workers is not None:
            self._workers.delivered()

    def collect(self, handle: BatchHandle) -> Rows:
        """The vectors of a launched batch: float32 `[texts, dimension]`."""
        assert isinstance(handle, LaunchedBatch)
        if handle.lengths is None and len(handle.order) == 1:
            # It is in its place, and in memory that no other pass gets.
            only: npt.NDArray[np.float32] = handle.vectors.numpy()
            return only
        return super().collect(handle)

    def _missing_rows(self, tokens: int) -> int:
        return whole_rows(tokens, self.fewest_rows) - tokens

    def _stage(self, *arrays: npt.NDArray[np.int64]) -> tuple[Tensor | None, list[Tensor]]:
        return None, list(map(torch.from_numpy, arrays))


def is_plain_thread() -> bool:
    """Whether torch's operators run on the calling thread as on any other; False if unknown.

    A thread may have autocast on, inference mode, or a mode that sees every operator, such as a
    default device's.
    """
    try:
        modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    except AttributeError:  # private names
        return False
    autocast = any(map(torch.is_autocast_enabled, ("cpu", "cuda", "mps")))
    return modes == 0 and not autocast and not torch.is_inference_mode_enabled()
