"""Whether a text's vector is bitwise identical in every batch: found at load, by real batches.

Texts run alone, all together, and after a prefix that another batch computed, on every number of
threads that a pass may take. What they do not show is looked at by shape: products of many rows
in `cpu_linear`, attention within long texts in `attention_check`.

It plans its batches by itself and knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ..embeddings import OutputSpec
from ..outputs import Rows
from ..scheduler.batch import Batch, BatchShape, Segment
from ..scheduler.prefix_cache import BlockAllocation, PrefixCache, PrefixCacheConfig
from ..scheduler.request import Priority, Request
from ..scheduler.token_chunk import TokenChunk

__all__ = ["LENGTHS", "is_batch_invariant"]

# Of two texts neighbours are alike; the longest ones have several tiles and blocks of a prefix.
LENGTHS = (130, 75, 40, 40, 20, 9, 9, 3, 1)


Ids = npt.NDArray[np.int32]


Run = Callable[[Batch, int | None], Rows]
"""Vectors of a batch, computed on N threads, or on as many as there are."""


def is_batch_invariant(
    run: Run,
    texts: Sequence[Ids],
    *,
    route: int,
    shape: BatchShape,
    threads: Sequence[int | None],
    prefixes: PrefixCacheConfig | None,
) -> bool:
    """Whether every text has one vector, bit by bit, however it is batched.

    `texts` are token ids, all different. A cache of `prefixes` is written to.
    """
    expected = [
        run(_batch(route, shape, [ids]), threads[place % len(threads)])[0]
        for place, ids in enumerate(texts)
    ]
    agree = partial(_agree, expected)
    for count in threads:
        for together in _groups(texts, shape):
            found = run(_batch(route, shape, [texts[place] for place in together]), count)
            if not agree(together, found):
                return False
    if prefixes is None or max(map(len, texts)) <= prefixes.block_tokens:
        return True
    return all(
        agree(*_after_prefixes(run, texts, route, PrefixCache.of(prefixes), count))
        for count in threads
    )


def _agree(
    expected: Sequence[npt.NDArray[np.float32]],
    places: Sequence[int],
    found: Rows,
) -> bool:
    return all(
        np.array_equal(vector, expected[place]) for place, vector in zip(places, found, strict=True)
    )


def _groups(texts: Sequence[Ids], shape: BatchShape) -> list[list[int]]:
    """The texts that may share a batch, by their places."""
    groups: dict[int | None, list[int]] = {}
    for place, ids in enumerate(texts):
        groups.setdefault(shape.padded_length(len(ids)), []).append(place)
    return list(groups.values())


def _after_prefixes(
    run: Run, texts: Sequence[Ids], route: int, cache: PrefixCache, threads: int | None
) -> tuple[list[int], Rows]:
    """The texts with more than a block, each after a prefix that other texts put into the cache."""
    step = cache.block_tokens
    places = [place for place, ids in enumerate(texts) if len(ids) > step]
    before = []
    for place in places:
        ids = texts[place]
        prefix = ids[: (len(ids) - 1) // step * step]
        before.append(np.append(prefix, ids[:1]))  # no other text, and it ends otherwise
    for each in (before, [texts[place] for place in places]):
        owner = object()
        claims = [cache.claim(ids, owner=owner) for ids in each]
        found = run(_batch(route, BatchShape(), each, claims=claims), threads)
        for claim in claims:
            cache.commit(claim)
            cache.release(claim)
    return places, found


def _batch(
    route: int,
    shape: BatchShape,
    texts: Sequence[Ids],
    *,
    claims: Sequence[BlockAllocation] | None = None,
) -> Batch:
    """A batch of these texts, in this order, each a call of its own."""
    segments = []
    for place, ids in enumerate(texts):
        output = OutputSpec(dimension=1)
        request = Request([ids], output=output, priority=Priority.BULK, route=route, tokenized=True)
        chunk = TokenChunk.build(np.zeros(1, dtype=np.int64), ids, np.array([len(ids)]))
        held = None if claims is None else (claims[place],)
        segments.append(Segment(request, chunk, 0, 1, held))
    return Batch(route, tuple(segments), shape.padded_length(max(map(len, texts))))
