"""`InputBatch`: a planned batch as integers, in the order a forward pass takes them.

Longest texts first, so that neighbours are of equal length. It knows no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from ..model.pooling_model import PoolingModel
from ..scheduler.batch import Batch, Segment
from ..scheduler.prefix_cache import BlockAllocation
from ..scheduler.token_chunk import ranges
from ..tokenization.query_fill import hidden_tokens, plain_ids

__all__ = ["InputBatch", "PrefixInputBatch"]


@dataclass(frozen=True)
class InputBatch:
    """The tokens of a batch end to end, and its texts, longest first."""

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    """Place in the batch of the *i*-th text here."""
    hidden: npt.NDArray[np.bool_] | None = None
    """Which tokens no other attends to; None where there are none."""
    kept: npt.NDArray[np.int64] | None = None
    """The places of the tokens that have a vector in the result; None for a model that pools."""
    counts: npt.NDArray[np.int64] | None = None
    """Vectors of each text; None for a model that gives one a text."""

    @classmethod
    def of(cls, batch: Batch) -> InputBatch:
        if len(batch.segments) == 1:  # sorted already
            return cls._of_one(batch.segments[0])
        spans = [(s.chunk, s.start, s.stop) for s in batch.segments]
        ids = np.concatenate([c.ids[c.offsets[a] : c.offsets[b]] for c, a, b in spans])
        lengths = np.concatenate([c.lengths[a:b] for c, a, b in spans])
        prompts = np.repeat(
            [s.request.prompt_tokens for s in batch.segments], [s.texts for s in batch.segments]
        )
        order = np.argsort(-lengths, kind="stable")
        starts = np.cumsum(lengths) - lengths
        ids = ids[ranges(starts[order], lengths[order])]
        return cls(ids.astype(np.int64), lengths[order], prompts[order].astype(np.int64), order)

    @classmethod
    def _of_one(cls, segment: Segment) -> InputBatch:
        request, chunk, start, stop, *_ = segment
        ids = chunk.ids[chunk.offsets[start] : chunk.offsets[stop]].astype(np.int64)
        prompts = np.full(stop - start, request.prompt_tokens, dtype=np.int64)
        return cls(ids, chunk.lengths[start:stop], prompts, np.arange(stop - start))

    def read_by(self, model: PoolingModel) -> InputBatch:
        """With what its token ids say beside the tokens, to a model that tells them apart."""
        ids, hidden, kept, counts = self.ids, None, None, None
        if model.tokenizer.query_fill is not None:
            hidden, ids = hidden_tokens(ids), plain_ids(ids)
        if model.head.keeps_rows:
            kept, counts = model.kept_tokens.places(ids, self.lengths)
        return replace(self, ids=ids, hidden=hidden, kept=kept, counts=counts)

    def kept_from(self, starts: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[np.int64]]:
        """`kept` where texts begin at those rows; none where it is None."""
        if self.kept is None:
            return ()
        before = np.repeat(starts - (np.cumsum(self.lengths) - self.lengths), self.lengths)
        return (self.kept + before[self.kept],)


@dataclass(frozen=True)
class PrefixInputBatch:
    """The tokens of a batch that are computed, end to end, and the slots of those that are not.

    Neighbours are of equal length and, among those, of equal prefix. A block of a prefix cache is
    as many slots as it holds tokens at most.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]
    """Tokens of each text's row that are of a prompt which pooling leaves out."""
    positions: npt.NDArray[np.int64]
    """Of each token in its text."""
    prefixes: npt.NDArray[np.int64]
    """Tokens that precede those of each text."""
    read: npt.NDArray[np.int64]
    """The slots of all prefixes."""
    rows: npt.NDArray[np.int64]
    """Tokens whose keys and values are kept, as places in `ids`."""
    written: npt.NDArray[np.int64]
    """The slots they are kept in."""
    order: npt.NDArray[np.int64]

    @classmethod
    def of(cls, batch: Batch, block_tokens: int) -> PrefixInputBatch:
        claims, ids, begins, ends = _claimed(batch)
        cached = np.array([claim.cached_tokens for claim in claims])
        order = np.lexsort((-cached, -(ends - cached)))
        cached, begins, lengths = cached[order], begins[order], (ends - cached)[order]
        slots = _Slots.of([claims[place] for place in order.tolist()], block_tokens)
        row_starts = np.cumsum(lengths) - lengths
        filled = slots.filled
        return cls(
            ids=ids[ranges(begins + cached, lengths)].astype(np.int64),
            lengths=lengths,
            prompt_lengths=np.clip(_excluded_prompt_tokens(batch)[order] - cached, 0, lengths),
            positions=ranges(cached, lengths),
            prefixes=cached,
            read=slots.slots[slots.positions < cached[slots.texts]],
            rows=(row_starts - cached)[slots.texts[filled]] + slots.positions[filled],
            written=slots.slots[filled],
            order=order,
        )


@dataclass(frozen=True)
class _Slots:
    """Every token that has a slot: which, and which token of which text it is."""

    slots: npt.NDArray[np.int64]
    texts: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    filled: npt.NDArray[np.bool_]
    """Whether the batch fills the slot."""

    @classmethod
    def of(cls, claims: Sequence[BlockAllocation], block_tokens: int) -> _Slots:
        counts = np.array([len(claim.blocks) for claim in claims])
        blocks = np.fromiter(chain.from_iterable(c.blocks for c in claims), np.int64)
        sizes = np.fromiter(chain.from_iterable(c.sizes for c in claims), np.int64)
        tokens = np.array([claim.cached_so_far for claim in claims])
        reused = np.array([claim.reused for claim in claims])
        is_new = ranges(np.zeros_like(counts), counts) >= np.repeat(reused, counts)
        return cls(
            slots=ranges(blocks * block_tokens, sizes),
            texts=np.repeat(np.arange(len(claims)), tokens),
            positions=ranges(np.zeros_like(tokens), tokens),
            filled=np.repeat(is_new, sizes),
        )


def _claimed(
    batch: Batch,
) -> tuple[
    list[BlockAllocation], npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]
]:
    """Each text's claim, all ids, where each text begins among them, and its tokens by its end."""
    claims: list[BlockAllocation] = []
    ids, begins, ends, before = [], [], [], 0
    for segment in batch.segments:
        chunk, start, stop = segment.chunk, segment.start, segment.stop
        first, last = chunk.offsets[start], chunk.offsets[stop]
        claims += segment.claims or ()
        ids.append(chunk.ids[first:last])
        begins.append(chunk.offsets[start:stop] - first + before)
        lengths = chunk.lengths[start:stop]
        ends.append(lengths if segment.until is None else np.array([segment.until]))
        before += int(last - first)
    return claims, np.concatenate(ids), np.concatenate(begins), np.concatenate(ends)


def _excluded_prompt_tokens(batch: Batch) -> npt.NDArray[np.int64]:
    """Tokens of each text's prompt that pooling leaves out; 0 where nothing is pooled yet."""
    segments = batch.segments
    tokens = [0 if s.is_unfinished else s.request.prompt_tokens for s in segments]
    return np.repeat(np.array(tokens, dtype=np.int64), [s.texts for s in segments])
