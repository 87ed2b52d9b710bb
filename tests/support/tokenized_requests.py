"""Requests of token ids, and a scheduler that takes them: what tests of plans begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from millpond.embeddings import OutputSpec
from millpond.scheduler.batch import BatchShape
from millpond.scheduler.prefix_cache import PrefixCache
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.scheduler import Scheduler
from millpond.scheduler.token_chunk import TokenChunk

__all__ = ["WAIT_S", "Ids", "chunk_of", "request_of", "scheduler_of", "submit"]

OUTPUT = OutputSpec(dimension=1)
WAIT_S = 0.03
PACKED = BatchShape()
Ids = tuple[int, ...]


def request_of(texts: Sequence[Ids], **options: Any) -> Request:
    arrays = [np.array(text, dtype=np.int32) for text in texts]
    return Request(arrays, output=OUTPUT, tokenized=True, **{"priority": Priority.BULK, **options})


def chunk_of(
    request: Request, rows: npt.NDArray[np.int64] | None = None, *, digests: int | None = None
) -> TokenChunk:
    """Texts of a request, tokenised; with no more than so many `digests`."""
    taken = np.arange(len(request)) if rows is None else rows
    ids = [np.asarray(request.texts[row], dtype=np.int32) for row in taken.tolist()]
    chunk = TokenChunk.build(taken, np.concatenate(ids), np.array([len(one) for one in ids]))
    return chunk if digests is None else replace(chunk, digests=chunk.digests % np.uint64(digests))


def scheduler_of(
    *,
    budget: int = 8,
    prefixes: PrefixCache | None = None,
    caches: Sequence[PrefixCache] = (),
    shape: BatchShape = PACKED,
    **more: Any,
) -> Scheduler:
    options = {"max_queue_tokens": 10_000, "max_query_wait_s": WAIT_S, **more}
    if prefixes is not None:
        caches = [prefixes]
    return Scheduler([shape], max_batch_tokens=budget, caches=caches, **options)


def submit(scheduler: Scheduler, request: Request, now_s: float = 0.0) -> Request:
    scheduler.submit(request, now_s, chunk_of(request))
    return request
