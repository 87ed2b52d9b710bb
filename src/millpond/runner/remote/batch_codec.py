"""A `Batch` as arrays and back, and the `Rows` that come of it.

What arrives is what a runner reads of a batch: token ids, how they stand in it, and which blocks
they continue from. The requests stay with the sender: those of an arrived batch know their number
of prompt tokens and their priority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ...outputs import RaggedRows, Rows
from ...scheduler.batch import Batch, Segment
from ...scheduler.prefix_cache import BlockAllocation
from ...scheduler.request import Priority, Request
from ...scheduler.token_chunk import TokenChunk

__all__ = ["ArrivedRequest", "arrays_of", "batch_of", "row_arrays", "rows_of"]

Array = npt.NDArray[Any]

NONE = -1
NO_DIGESTS = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class ArrivedRequest:
    """What a runner reads of the request of a batch's texts."""

    id: int
    prompt_tokens: int
    priority: Priority
    dead: bool = False


def arrays_of(batch: Batch) -> list[Array]:
    """All of a batch that its runner reads."""
    segments = batch.segments
    padded = NONE if batch.padded_length is None else batch.padded_length
    head = np.array([batch.route, padded, batch.uses_prefixes], dtype=np.int64)
    facts = np.array([fact for segment in segments for fact in _facts(segment)], dtype=np.int64)
    lengths = [s.chunk.lengths[s.start : s.stop] for s in segments]
    ids = [s.chunk.ids[s.chunk.offsets[s.start] : s.chunk.offsets[s.stop]] for s in segments]
    arrays: list[Array] = [head, facts, np.concatenate(lengths), np.concatenate(ids)]
    return arrays + (_claim_arrays(segments) if batch.uses_prefixes else [])


def _facts(segment: Segment) -> tuple[int, ...]:
    request, until = segment.request, segment.until
    return (
        segment.texts,
        request.prompt_tokens,
        request.priority is Priority.INTERACTIVE,
        NONE if until is None else until,
        segment.computed_before,
        segment.claims is not None,
    )


def _claim_arrays(segments: Sequence[Segment]) -> list[Array]:
    """Each claim once, however many texts share it, and which of them each text has."""
    texts = [claim for segment in segments for claim in segment.claims or ()]
    places = {id(claim): place for place, claim in enumerate(dict.fromkeys(texts))}
    claims = list(dict.fromkeys(texts))
    facts = [
        fact
        for claim in claims
        for fact in (len(claim.blocks), claim.reused, claim.cached_tokens, claim.length)
    ]
    return [
        np.array([places[id(claim)] for claim in texts], dtype=np.int32),
        np.array(facts, dtype=np.int64),
        np.array([block for claim in claims for block in claim.blocks], dtype=np.int32),
        np.array([size for claim in claims for size in claim.sizes], dtype=np.int32),
    ]


def batch_of(arrays: Sequence[Array]) -> Batch:
    """The batch that was made into these arrays. It reads token ids where they lie."""
    head, facts, lengths, ids, *claimed = arrays
    route, padded, _ = head.tolist()
    claims = iter(_claims(claimed) if claimed else ())
    segments, text, token, numbers = [], 0, 0, count()
    for texts, prompt, interactive, until, before, has_claims in facts.reshape(-1, 6).tolist():
        own = lengths[text : text + texts]
        offsets = np.concatenate(([0], np.cumsum(own)))
        priority = Priority.INTERACTIVE if interactive else Priority.BULK
        request = cast(Request, ArrivedRequest(next(numbers), prompt, priority))
        chunk = TokenChunk(
            rows=np.arange(texts),
            lengths=own,
            offsets=offsets,
            ids=ids[token : token + int(offsets[-1])],
            tokenize_s=0.0,
            digests=NO_DIGESTS,
        )
        held = tuple(next(claims) for _ in range(texts)) if has_claims else None
        stop = None if until == NONE else until
        segments.append(Segment(request, chunk, 0, texts, held, stop, before))
        text, token = text + texts, token + int(offsets[-1])
    return Batch(route, tuple(segments), None if padded == NONE else padded)


def _claims(arrays: Sequence[Array]) -> list[BlockAllocation]:
    places, facts, blocks, sizes = arrays
    claims, start = [], 0
    for count_, reused, cached, length in facts.reshape(-1, 4).tolist():
        stop = start + count_
        own = blocks[start:stop].tolist(), sizes[start:stop].tolist()
        claims.append(BlockAllocation(*own, reused, cached, length))
        start = stop
    return [claims[place] for place in places.tolist()]


def row_arrays(rows: Rows, *, padded_tokens: int) -> list[Array]:
    """What a runner gave for a batch, to go back."""
    values = rows.values if isinstance(rows, RaggedRows) else rows
    facts = np.array([padded_tokens, *values.shape], dtype=np.int64)
    arrays: list[Array] = [facts, np.ascontiguousarray(values, dtype=np.float32).reshape(-1)]
    if isinstance(rows, RaggedRows):
        arrays.append(rows.offsets.astype(np.int64))
    return arrays


def rows_of(arrays: Sequence[Array]) -> tuple[Rows, int]:
    """A copy of what the runner gave, and the padded tokens."""
    facts, values, *offsets = arrays
    padded_tokens, *shape = facts.tolist()
    rows = values.reshape(shape).copy()
    return (RaggedRows(rows, offsets[0].copy()) if offsets else rows), padded_tokens
