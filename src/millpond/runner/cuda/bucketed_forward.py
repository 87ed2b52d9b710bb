"""`BucketedForward`: a packed batch through a pipeline on a GPU, in a bucket.

One copy takes all integers of a batch to the device, into memory that stays where it is, and the
forward pass of the bucket reads them there. It never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...attention.kv_cache import KVCache
from ...attention.packed import PackedSequences
from ...attention.prefix import JoinedKeys, PrefixedSequences, PrefixIndex
from ...attention.varlen import uses_varlen
from ...model.pooling_model import PooledRows, PoolingModel
from .buckets import Bucket, bucket_for, query_buckets
from .graphs import Agree, AnyBucket, Capture, CudaGraphs, Share, cuda_graph_capture
from .pinned_buffers import PinnedBuffers
from .plain_runs import AtOnce, PlainRuns
from .prefix_buckets import PrefixBucket, prefix_bucket_for

__all__ = ["BucketedForward", "bucketed_forwards", "forward_bucket", "is_bucketed"]

WARM_UP_TOKENS = 8

LONG_TEXTS = (1024, 4096)  # tokens: attention's kernels are others than of short texts


# The largest batch of "auto". Launched one by one, its kernels keep the interpreter from threads
# that tokenise and deliver.
MOST_RECORDED_ROWS = 32_768


# Of texts that continue from cached prefixes: the keys of more take too much memory in order.
MOST_PREFIXED_ROWS = 8192


MOST_RECORDED_KEYS = 65_536  # read and put in order; what bounds the rows bounds the rest


IntArray = npt.NDArray[np.int64]


class BucketRun(NamedTuple):
    """A forward pass that was started."""

    vectors: Tensor
    """`[≥ n, dimension]`, valid until the next run on the stream."""
    rows: int
    """Rows computed, of texts and of padding."""
    staging: Tensor
    """The pinned buffer that the device may still be reading."""


class BucketedForward:
    """Runs texts of one pipeline; `invariant_rows` makes them batch-invariant.

    With a `cache` it also runs texts that continue from cached prefixes. What is captured, when
    `plain_runs` of its bucket say so, runs on the `share` of the device, where there is one, while
    that is on. Batches beyond
    `most_tokens`, or beyond `MOST_RECORDED_ROWS` that are not fixed, run plainly, in memory of
    their own. So graphs take no more than some thousand rows do.
    """

    def __init__(
        self,
        pipeline: PoolingModel,
        *,
        device: torch.device,
        buffers: PinnedBuffers,
        capture: Capture,
        most_tokens: int,
        invariant_rows: int | None = None,
        cache: KVCache | None = None,
        agree: Agree | None = None,
        share: Share | None = None,
        plain_runs: Callable[[], PlainRuns] = AtOnce,
    ) -> None:
        self._pipeline = pipeline
        self._cache = cache
        self._device = device
        self._buffers = buffers
        self._invariant_rows = invariant_rows
        self._sizes = {
            "invariant_rows": invariant_rows,
            "max_length": pipeline.tokenizer.max_length,
        }
        self._most_rows = bucket_for(most_tokens, 1, 1, **self._sizes).rows
        if invariant_rows is None:
            self._most_rows = min(self._most_rows, MOST_RECORDED_ROWS)
        integers = sum(Bucket(self._most_rows, self._most_rows, 1).sizes)
        if cache is not None:
            integers += 2 * MOST_RECORDED_KEYS
        self._integers = torch.zeros(integers, dtype=torch.int64, device=device)
        self._graphs = CudaGraphs(
            self._forward, capture, agree=agree, share=share, plain_runs=plain_runs
        )

    def run(
        self, ids: npt.NDArray[np.integer], lengths: IntArray, prompt_lengths: IntArray
    ) -> BucketRun:
        """Start the forward pass of texts end to end, longest first."""
        bucket = bucket_for(len(ids), len(lengths), int(lengths[0]), **self._sizes)
        if self._invariant_rows is None:
            bucket = self._graphs.at_hand(bucket)
        count = sum(bucket.sizes)
        staging = self._buffers.take(count, torch.int64)
        pad_id = self._pipeline.tokenizer.pad_id
        bucket.fill(staging[:count].numpy(), ids, lengths, prompt_lengths, pad_id=pad_id)
        return self._start(bucket, staging, len(lengths))

    def run_prefixed(
        self, ids: IntArray, positions: IntArray, prompt_lengths: IntArray, index: PrefixIndex
    ) -> BucketRun:
        """Start the forward pass of what follows texts' prefixes, end to end."""
        assert self._cache is not None
        bucket = prefix_bucket_for(index)
        count = sum(bucket.sizes)
        staging = self._buffers.take(count, torch.int64)
        bucket.fill(
            staging[:count].numpy(),
            ids,
            positions,
            prompt_lengths,
            index,
            pad_id=self._pipeline.tokenizer.pad_id,
            null_slot=self._cache.null_slot,
        )
        return self._start(bucket, staging, len(prompt_lengths))

    def _start(self, bucket: AnyBucket, staging: Tensor, texts: int) -> BucketRun:
        count = sum(bucket.sizes)
        if count > len(self._integers) or bucket.rows > self._most_rows:
            integers = staging[:count].to(self._device, non_blocking=True)
            return BucketRun(self._forward(bucket, integers), bucket.rows, staging)
        self._integers[:count].copy_(staging[:count], non_blocking=True)
        vectors = self._graphs.run(bucket, self._integers, texts)
        return BucketRun(vectors, bucket.rows, staging)

    def warm_up(self, *, most_texts: int) -> None:
        """Capture the buckets that up to `most_texts` queries need."""
        for bucket in query_buckets(self._most_rows, most_texts, **self._sizes):
            self._put_a_text(bucket)
            for _ in range(2):  # the second time is when it is captured
                self._graphs.run(bucket, self._integers, 1)

    def compile_for_long_texts(self) -> None:
        """Have the kernels of attention made that only long texts need, if the model reads any.

        It takes Triton a second, in which an ingestion would stand still. They are kept on disk.
        """
        most = self._sizes["max_length"] or max(LONG_TEXTS)
        for tokens in (tokens for tokens in LONG_TEXTS if tokens <= most):
            bucket = bucket_for(tokens, 1, tokens, **self._sizes)
            if bucket.rows <= self._most_rows:
                self._put_a_text(bucket)
                self._forward(bucket, self._integers)

    def _put_a_text(self, bucket: Bucket) -> None:
        """Have the device's integers say a few tokens of one text."""
        pad_id = self._pipeline.tokenizer.pad_id
        text, length = np.full(WARM_UP_TOKENS, pad_id), np.array([WARM_UP_TOKENS])
        integers = np.empty(sum(bucket.sizes), dtype=np.int64)
        bucket.fill(integers, text, length, np.zeros(1, dtype=np.int64), pad_id=pad_id)
        self._integers[: len(integers)].copy_(torch.from_numpy(integers))

    def free_memory(self) -> None:
        """Let go of the graphs and what they hold."""
        self._graphs.clear()

    def _forward(self, bucket: AnyBucket, integers: Tensor) -> Tensor:
        if isinstance(bucket, PrefixBucket):
            assert self._cache is not None
            return forward_prefixed(self._pipeline, bucket, integers, self._cache)
        return forward_bucket(
            self._pipeline, bucket, integers, deterministic=self._invariant_rows is not None
        )

    def __repr__(self) -> str:
        return f"BucketedForward(rows≤{self._most_rows}, {self._graphs!r})"


def bucketed_forwards(
    models: Sequence[PoolingModel], *, device: torch.device, **options: Any
) -> tuple[BucketedForward | None, ...]:
    """One for each pipeline that the variable-length kernel serves; `options` are the class's."""
    capture = cuda_graph_capture()
    return tuple(
        BucketedForward(pipeline, device=device, capture=capture, **options)
        if is_bucketed(pipeline, device)
        else None
        for pipeline in models
    )


def is_bucketed(pipeline: PoolingModel, device: torch.device) -> bool:
    """Whether the variable-length kernel serves it."""
    packed = pipeline.pad_to is None and not pipeline.is_static
    head = pipeline.head
    return (
        packed
        and not head.keeps_rows
        and not head.is_sparse
        and uses_varlen(device, pipeline.dtype)
    )


def forward_bucket(
    pipeline: PoolingModel, bucket: Bucket, integers: Tensor, *, deterministic: bool = False
) -> Tensor:
    """The vectors `[texts, dimension]` of a bucket's integers, int64 on the device."""
    parts = torch.split(integers[: sum(bucket.sizes)], list(bucket.sizes))
    ids, positions, starts, lengths, prompt_lengths, edges = parts
    sequences = PackedSequences(
        groups=(),
        longest=bucket.longest,
        boundaries=edges.to(torch.int32),
        deterministic=deterministic,
    )
    texts = PooledRows(starts, lengths, prompt_lengths)
    vectors = pipeline.packed(ids, positions, sequences, texts)
    assert isinstance(vectors, Tensor)
    return vectors


def forward_prefixed(
    pipeline: PoolingModel, bucket: PrefixBucket, integers: Tensor, cache: KVCache
) -> Tensor:
    """The vectors `[texts, dimension]` of a bucket whose texts continue from what a cache holds."""
    parts = torch.split(integers[: sum(bucket.sizes)], list(bucket.sizes))
    ids, positions, starts, lengths, prompt_lengths, *edges, order, read, kept, written = parts
    query_edges, key_edges = (each.to(torch.int32) for each in edges)
    joined = JoinedKeys(order, query_edges, key_edges, bucket.longest, bucket.longest_key)
    sequences = PrefixedSequences(cache, read, kept, written, joined=joined)
    texts = PooledRows(starts, lengths, prompt_lengths)
    vectors = pipeline.packed(ids, positions, sequences, texts)
    assert isinstance(vectors, Tensor)
    return vectors
