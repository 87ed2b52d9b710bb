"""`PrefixedSequences`: a packed row whose sequences go on from keys and values in a `KVCache`.

It takes the place of `PackedSequences` for causal models. In every layer the keys and values that
are to be kept are written first and prefixes read after, so a sequence may go on from what another
one of the same row writes. Which slots hold which tokens is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .attention import attend_varlen, uses_varlen
from .causal_tiles import Masks, attend_in_tiles
from .kv_cache import KVCache

__all__ = ["PrefixSlots", "PrefixedSequences"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PrefixSlots:
    """Where a row's sequences go on from, and what is kept of it: integers, in slots of a cache.

    `lengths` are tokens that precede each sequence and `read` their slots, one sequence after the
    other; the tokens of the row at `rows` are kept in the slots `written`.
    """

    lengths: IntArray
    read: IntArray
    rows: IntArray
    written: IntArray


class _Run(NamedTuple):
    """Neighbours of equal length and equal prefix."""

    row: int
    texts: int
    length: int
    prefix: int
    slot: int
    """Where the slots of their prefixes begin among those that are read."""


@dataclass(frozen=True)
class _Joined:
    """How keys of prefixes and of the row stand end to end, for the variable-length kernel."""

    query_boundaries: Tensor
    key_boundaries: Tensor
    longest_query: int
    longest_key: int
    prefix_rows: Tensor
    own_rows: Tensor


@dataclass(frozen=True)
class PrefixedSequences:
    """Sequences of a packed row, each after its prefix."""

    cache: KVCache
    runs: tuple[_Run, ...]
    read: Tensor
    rows: Tensor
    written: Tensor
    joined: _Joined | None = None
    masks: Masks = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: IntArray, slots: PrefixSlots, cache: KVCache) -> PrefixedSequences:
        """Sequences of these lengths, in this order; neighbours alike share a call on a CPU."""
        device = cache.device
        varlen = uses_varlen(device, cache.dtype)
        return cls(
            cache=cache,
            runs=() if varlen else tuple(_runs(lengths, slots.lengths)),
            read=_on(device, slots.read),
            rows=_on(device, slots.rows),
            written=_on(device, slots.written),
            joined=_join(lengths, slots.lengths, device) if varlen else None,
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int | None,
        scaling: float | None,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        """`[heads, total, size]` in, `[total, heads, size]` out."""
        if not causal:
            raise NotImplementedError("its attention is not causal")
        if layer is None:
            raise NotImplementedError("its attention does not say which layer it is in")
        key, value = key.transpose(0, 1), value.transpose(0, 1)
        if len(self.rows):
            self.cache.write(layer, self.written, key[self.rows], value[self.rows])
        if self.joined is not None:
            return self._varlen(query.transpose(0, 1), key, value, layer, scaling, window)
        parts = [
            self._run(run, query, key, value, layer=layer, scaling=scaling, window=window)
            for run in self.runs
        ]
        return torch.cat(parts)

    def _run(
        self,
        run: _Run,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        stop = run.row + run.texts * run.length
        queries = query[:, run.row : stop].transpose(0, 1)
        queries, keys, values = (
            rows.reshape(run.texts, -1, *rows.shape[1:])
            for rows in (queries, key[run.row : stop], value[run.row : stop])
        )
        if run.prefix:
            read = self.read[run.slot : run.slot + run.texts * run.prefix]
            old = (
                rows.view(run.texts, run.prefix, *rows.shape[1:])
                for rows in self.cache.read(layer, read)
            )
            keys, values = (
                torch.cat(both, dim=1) for both in zip(old, (keys, values), strict=True)
            )
        out = attend_in_tiles(
            queries.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            scaling=scaling,
            window=window,
            masks=self.masks,
        )
        return out.transpose(1, 2).flatten(0, 1)

    def _varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        joined = self.joined
        assert joined is not None
        total = len(joined.prefix_rows) + len(joined.own_rows)
        both = []
        for own, old in zip((key, value), self.cache.read(layer, self.read), strict=True):
            rows = own.new_empty(total, *own.shape[1:])
            rows[joined.own_rows] = own
            rows[joined.prefix_rows] = old
            both.append(rows)
        return attend_varlen(
            query,
            *both,
            query_boundaries=joined.query_boundaries,
            key_boundaries=joined.key_boundaries,
            longest_query=joined.longest_query,
            longest_key=joined.longest_key,
            scaling=scaling,
            window=window,
            causal=True,
        )


def _runs(lengths: IntArray, prefixes: IntArray) -> Sequence[_Run]:
    changes = np.flatnonzero(np.diff(lengths) | np.diff(prefixes)) + 1
    firsts = np.concatenate(([0], changes))
    counts = np.diff(np.concatenate((firsts, [len(lengths)])))
    rows = np.cumsum(lengths) - lengths
    slots = np.cumsum(prefixes) - prefixes
    columns = (rows[firsts], counts, lengths[firsts], prefixes[firsts], slots[firsts])
    return [_Run(*run) for run in zip(*(column.tolist() for column in columns), strict=True)]


def _join(lengths: IntArray, prefixes: IntArray, device: torch.device) -> _Joined:
    keys = lengths + prefixes
    starts = np.cumsum(keys) - keys
    return _Joined(
        query_boundaries=_on(device, _edges(lengths)),
        key_boundaries=_on(device, _edges(keys)),
        longest_query=int(lengths.max()),
        longest_key=int(keys.max()),
        prefix_rows=_on(device, _ranges(starts, prefixes)),
        own_rows=_on(device, _ranges(starts + prefixes, lengths)),
    )


def _edges(lengths: IntArray) -> npt.NDArray[np.int32]:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """`start, start + 1, …` for each, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _on(device: torch.device, array: npt.NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
