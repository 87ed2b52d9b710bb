"""`Runner`: a `Batch` in, tensors, one forward pass, pooled vectors out.

The one place that knows both scheduling and models. It belongs to the engine's loop thread; only
`tokenize` may be called from others. Which batch runs when is not its business.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .config import EngineConfig
from .errors import InvalidInput
from .models.attention import PackedSequences, uses_varlen
from .models.loading import choose_device
from .models.pipeline import Pipeline, RouteInfo, TokenRows, load_pipelines
from .models.spec import ModelSpec
from .scheduling.batch import Batch
from .scheduling.job import Chunk, Job
from .scheduling.lane_queue import BatchShape

__all__ = ["BatchRunner", "Runner", "Ticket"]

MIN_CPU_ROWS = 16  # a CPU matrix product gives a row the same bits from this many rows on
# On a CPU, batches beyond the caches are slower; a GPU wants them large; a table has no arithmetic.
BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384, "mps": 8_192, "static": 65_536}
FloatArray = npt.NDArray[np.float32]


class Ticket(Protocol):
    """A launched batch."""

    @property
    def padded_tokens(self) -> int:
        """Tokens computed beside those of the texts."""


class BatchRunner(Protocol):
    """What the engine's loop asks of a runner; tests bring their own."""

    @property
    def routes(self) -> Sequence[RouteInfo]:
        """The ways through the model; a job's `route` is an index into them."""

    @property
    def device_name(self) -> str:
        """Where it runs."""

    @property
    def dtype_name(self) -> str:
        """In which precision."""

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens it wants in one batch."""

    @property
    def shapes(self) -> Sequence[BatchShape]:
        """How texts of each route stand in a batch."""

    @property
    def depth(self) -> int:
        """Batches that may be launched before the first is collected."""

    def prompt_tokens(self, route: int, prompt: str) -> int:
        """Tokens of a prompt that pooling leaves out."""

    def tokenize(self, job: Job, rows: npt.NDArray[np.int64]) -> Chunk:
        """Turn texts of a job into ids, from any thread. Raises `InvalidInput`."""

    def launch(self, batch: Batch) -> Ticket:
        """Start a forward pass."""

    def collect(self, ticket: Ticket) -> FloatArray:
        """Wait for its vectors: float32 `[texts, dimension]`, in the order of the segments."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch could succeed where this error was raised."""

    def is_fatal(self, error: BaseException) -> bool:
        """Whether no batch can succeed after this error."""

    def free_memory(self) -> None:
        """Give cached device memory back after running out of it."""


@dataclass
class _Launched:
    vectors: Tensor
    order: npt.NDArray[np.int64]
    padded_tokens: int
    done: torch.cuda.Event | None = None
    staging: Tensor | None = None  # pinned memory the device may still be reading


@dataclass(frozen=True)
class _Layout:
    """The rows of a batch, as integers: texts longest first, fillers last."""

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    """Place in the batch of the *i*-th text of the layout."""

    @classmethod
    def of(cls, batch: Batch) -> _Layout:
        spans = [(s.chunk, s.start, s.stop) for s in batch.segments]
        ids = np.concatenate([c.ids[c.offsets[a] : c.offsets[b]] for c, a, b in spans])
        lengths = np.concatenate([c.lengths[a:b] for c, a, b in spans])
        prompts = np.repeat(
            [s.job.prompt_tokens for s in batch.segments], [s.texts for s in batch.segments]
        )
        order = np.argsort(-lengths, kind="stable")
        if len(spans) > 1:  # one span is sorted already
            ids = _gather(ids, lengths, order)
        return cls(ids.astype(np.int64), lengths[order], prompts[order].astype(np.int64), order)


def _gather(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    starts = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    targets = np.cumsum(lengths) - lengths
    return ids[np.repeat(starts - targets, lengths) + np.arange(len(ids))]


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream of our own, so that nobody else's work on the device waits for ours."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Runner:
    """Runs batches of a model's pipelines, one per route, on one device."""

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        *,
        device: torch.device,
        max_batch_tokens: int,
        deterministic: bool = False,
        max_length: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pipelines = tuple(pipelines)
        self.routes = tuple(pipeline.info() for pipeline in pipelines)
        self.device = device
        self.max_batch_tokens = max_batch_tokens
        self.shapes = tuple(
            BatchShape(pipeline.pad_to, pipeline.tokenizer.max_length) for pipeline in pipelines
        )
        self.depth = 2 if device.type == "cuda" else 1
        self._fixed_rows = max_batch_tokens if deterministic and device.type == "cuda" else None
        self._stream = _new_stream(device)
        self._max_length = max_length  # the user's; a checkpoint may set lower ones for a task
        self._clock = clock

    @classmethod
    def load(cls, spec: ModelSpec, config: EngineConfig) -> Runner:
        """Load a model onto its device. Raises `ModelError` and `InvalidOption`."""
        device = choose_device(config.device)
        pipelines = load_pipelines(spec, config, device)
        if config.max_batch_tokens == "auto":
            static = all(pipeline.is_static for pipeline in pipelines)
            max_batch_tokens = BATCH_TOKENS["static" if static else device.type]
        else:
            max_batch_tokens = config.max_batch_tokens
        return cls(
            pipelines,
            device=device,
            max_batch_tokens=max_batch_tokens,
            deterministic=config.deterministic,
            max_length=config.max_length,
        )

    @property
    def device_name(self) -> str:
        return str(self.device)

    @property
    def dtype_name(self) -> str:
        return str(self.pipelines[0].dtype).removeprefix("torch.")

    def prompt_tokens(self, route: int, prompt: str) -> int:
        """Tokens of a prompt that pooling leaves out; 0 for most models."""
        return self.pipelines[route].prompt_tokens(prompt)

    def tokenize(self, job: Job, rows: npt.NDArray[np.int64]) -> Chunk:
        """Turn texts of a job into ids and note what was cut off. Raises `InvalidInput`."""
        started_s = self._clock()
        tokenizer = self.pipelines[job.route].tokenizer
        texts = [job.texts[row] for row in rows.tolist()]
        limit = job.max_length
        if limit is not None and self._max_length is not None:
            limit = min(limit, self._max_length)
        try:
            if job.tokenized:
                tokens = tokenizer.fit_ids(texts, job.truncate, max_length=limit)
            else:
                prompted = [job.prompt + text for text in texts] if job.prompt else texts
                tokens = tokenizer.encode(prompted, truncate=job.truncate, max_length=limit)
        except InvalidInput as error:
            raise error.at(int(rows[error.index])) from None
        job.token_counts[rows] = tokens.lengths
        job.truncated[rows] = tokens.truncated
        seconds = self._clock() - started_s
        return Chunk.build(rows, tokens.ids, tokens.lengths, seconds)

    @torch.inference_mode()
    def launch(self, batch: Batch) -> _Launched:
        """Start a forward pass; on CUDA it returns before the device is done."""
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            layout = _Layout.of(batch)
            if self.pipelines[batch.route].pad_to is None:
                return self._launch_packed(batch, layout)
            return self._launch_padded(batch, layout)

    def _launch_packed(self, batch: Batch, layout: _Layout) -> _Launched:
        pipeline = self.pipelines[batch.route]
        fillers = () if pipeline.is_static else self._filler_lengths(layout.lengths)
        lengths = np.append(layout.lengths, fillers).astype(np.int64)
        ids = np.append(layout.ids, np.full(sum(fillers), pipeline.tokenizer.pad_id))
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        edges = np.append(starts, len(ids))
        staging, device_ids, device_positions, device_edges, *texts = self._stage(
            ids, positions, edges, starts[: batch.texts], layout.lengths, layout.prompt_lengths
        )
        sequences = None
        if not pipeline.is_static:
            varlen = uses_varlen(self.device, pipeline.dtype)
            sequences = PackedSequences.of(
                lengths,
                boundaries=device_edges.to(torch.int32) if varlen else None,
                deterministic=self._fixed_rows is not None,
            )
        vectors = pipeline.packed(device_ids, device_positions, sequences, TokenRows(*texts))
        return self._launched(vectors, layout, sum(fillers), staging)

    def _launch_padded(self, batch: Batch, layout: _Layout) -> _Launched:
        pipeline = self.pipelines[batch.route]
        assert batch.padded_length is not None
        width, texts = batch.padded_length, batch.texts
        rows = max(texts, -(-MIN_CPU_ROWS // width))
        lengths = np.append(layout.lengths, np.full(rows - texts, width))
        mask = np.arange(width) < lengths[:, None]
        ids = np.full((rows, width), pipeline.tokenizer.pad_id, dtype=np.int64)
        ids[:texts][mask[:texts]] = layout.ids
        starts = np.arange(texts) * width
        flat_mask = mask.astype(np.int64).ravel()
        staging, device_ids, device_mask, *places = self._stage(
            ids.ravel(), flat_mask, starts, layout.lengths, layout.prompt_lengths
        )
        vectors = pipeline.padded(
            device_ids.view(rows, width), device_mask.view(rows, width), TokenRows(*places)
        )
        return self._launched(vectors, layout, rows * width - batch.tokens, staging)

    def _filler_lengths(self, lengths: npt.NDArray[np.int64]) -> Sequence[int]:
        """Sequences to add so that the rows are as many as the same bits need."""
        tokens, shortest = int(lengths.sum()), int(lengths[-1])
        if self._fixed_rows is not None:
            whole, rest = divmod(-tokens % self._fixed_rows, shortest)
            return [shortest] * whole + [rest] * (rest > 0)
        if self.device.type != "cpu" or tokens >= MIN_CPU_ROWS:
            return ()
        # As long as the shortest text, they share its attention call.
        return [shortest] * -(-(MIN_CPU_ROWS - tokens) // shortest)

    def _stage(self, *arrays: npt.NDArray[np.int64]) -> tuple[Tensor, ...]:
        """All integers of a batch to the device in one copy: the host side first, then each."""
        staging = torch.from_numpy(np.concatenate(arrays))
        if self.device.type == "cuda":
            staging = staging.pin_memory()
        on_device = staging.to(self.device, non_blocking=True)
        return staging, *torch.split(on_device, [len(array) for array in arrays])

    def _launched(
        self, vectors: Tensor, layout: _Layout, padded_tokens: int, staging: Tensor
    ) -> _Launched:
        if self._stream is None:
            return _Launched(vectors.cpu(), layout.order, padded_tokens)
        on_host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        on_host.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(self._stream)
        return _Launched(on_host, layout.order, padded_tokens, done, staging)

    def collect(self, ticket: Ticket) -> FloatArray:
        """Wait for the vectors of a launched batch: float32 `[texts, dimension]`."""
        assert isinstance(ticket, _Launched)
        if ticket.done is not None:
            ticket.done.synchronize()
        vectors = np.empty(ticket.vectors.shape, dtype=np.float32)
        vectors[ticket.order] = ticket.vectors.numpy()
        return vectors

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch could succeed where this error was raised."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        # torch's CPU allocator raises a plain RuntimeError.
        return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)

    def is_fatal(self, error: BaseException) -> bool:
        """Whether the device is lost: a CUDA error other than running out of memory."""
        device_error = getattr(torch, "AcceleratorError", None)
        if device_error is not None and isinstance(error, device_error):
            return not self.is_out_of_memory(error)
        return isinstance(error, RuntimeError) and "CUDA error" in str(error)

    def free_memory(self) -> None:
        """Give cached device memory back after running out of it."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __repr__(self) -> str:
        kinds = ", ".join(route.execution for route in self.routes)
        return f"Runner(device={str(self.device)!r}, pipelines=[{kinds}], depth={self.depth})"
