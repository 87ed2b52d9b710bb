"""`PrefixedSequences`: a packed row whose sequences continue from keys and values in a `KVCache`.

It takes the place of `PackedSequences` for causal models. In every layer the keys and values that
are to be kept are written first and prefixes read after, so a sequence may continue from what
another one of the same row writes. Which slots hold which tokens is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .causal_tiles import Masks, attend_in_tiles
from .kv_cache import KVCache
from .packed import AttentionOptions
from .varlen import attend_varlen, in_float8, uses_varlen

__all__ = ["JoinedKeys", "PrefixIndex", "PrefixSlots", "PrefixedSequences"]

IntArray = npt.NDArray[np.int64]
MOST_KEYS = 32_768  # that are put end to end at a time on a CPU; a longer text's go in anyway


@dataclass(frozen=True)
class PrefixSlots:
    """What a row's sequences continue from, and what is kept of it: integers, in slots of a cache.

    `lengths` are tokens that precede each sequence and `read` their slots, one sequence after the
    other; the tokens of the row at `rows` are kept in the slots `written`.
    """

    lengths: IntArray
    read: IntArray
    rows: IntArray
    written: IntArray


class _Run(NamedTuple):
    """Neighbours of equal length and equal prefix, as many as a call takes."""

    row: int
    texts: int
    length: int
    prefix: int
    slot: int
    """Where the slots of their prefixes begin among those that are read."""


class JoinedKeys(NamedTuple):
    """How keys of prefixes and of the row stand end to end, for the variable-length kernel."""

    order: Tensor
    """For every key its place among those read from the cache and then those of the row."""
    query_boundaries: Tensor
    """`cu_seqlens`, int32 `[n + 1]`, like that of keys."""
    key_boundaries: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class PrefixIndex:
    """Where everything is that a row of sequences takes or leaves in a cache, on the host.

    int64: slots that are read, rows that are kept and the slots they are written to. What many
    sequences begin with is read once for the variable-length kernel.
    """

    read: IntArray
    rows: IntArray
    written: IntArray
    runs: tuple[_Run, ...]
    """Sequences that share a call; not for the variable-length kernel."""
    joined: tuple[IntArray, IntArray, IntArray] | None
    """The order of `JoinedKeys`, and where queries and keys begin; for that kernel only."""
    longest_query: int
    longest_key: int

    @property
    def arrays(self) -> tuple[IntArray, ...]:
        """What the device needs of it."""
        return (self.read, self.rows, self.written, *(self.joined or ()))

    @classmethod
    def of(cls, lengths: IntArray, slots: PrefixSlots, cache: KVCache) -> PrefixIndex:
        """Sequences of these lengths, in this order; neighbours alike share a call on a CPU."""
        keys = lengths + slots.lengths
        read, joined = slots.read, None
        runs: tuple[_Run, ...] = ()
        if uses_varlen(cache.device, cache.dtype):
            read, places = _distinct(slots.read)
            order = _key_order(lengths, slots.lengths, places, len(read))
            joined = order, _edges(lengths), _edges(keys)
        else:
            runs = tuple(_runs(lengths, slots.lengths))
        longest = int(lengths.max()), int(keys.max())
        return cls(read, slots.rows, slots.written, runs, joined, *longest)


@dataclass(frozen=True)
class PrefixedSequences:
    """Sequences of a packed row, each after its prefix."""

    cache: KVCache
    read: Tensor
    rows: Tensor
    written: Tensor
    runs: tuple[_Run, ...] = ()
    joined: JoinedKeys | None = None
    masks: Masks = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, index: PrefixIndex, cache: KVCache, arrays: Sequence[Tensor] | None = None
    ) -> PrefixedSequences:
        """The sequences of an index, whose `arrays` may be on the device already."""
        if arrays is None:
            arrays = [torch.from_numpy(array).to(cache.device) for array in index.arrays]
        read, rows, written, *key_order = arrays
        joined = None
        if key_order:
            order, *edges = key_order
            queries, keys = (each.to(torch.int32) for each in edges)
            joined = JoinedKeys(order, queries, keys, index.longest_query, index.longest_key)
        return cls(cache, read, rows, written, index.runs, joined)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        """`[heads, total, size]` in, `[total, heads, size]` out."""
        if not options.causal:
            raise NotImplementedError("its attention is not causal")
        layer = options.layer
        if layer is None:
            raise NotImplementedError("its attention does not say which layer it is in")
        key, value = key.transpose(0, 1), value.transpose(0, 1)
        if len(self.rows):
            kept = (rows.index_select(0, self.rows) for rows in (key, value))
            self.cache.write(layer, self.written, *kept)
        if self.joined is not None:
            out = self._varlen(query.transpose(0, 1), key, value, layer, options)
        else:
            out = torch.cat(
                [self._run(run, query, key, value, layer, options) for run in self.runs]
            )
        return in_float8(out, options.float8_scale)

    def _run(
        self,
        run: _Run,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        options: AttentionOptions,
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
            scaling=options.scaling,
            window=options.window,
            masks=self.masks,
        )
        return out.transpose(1, 2).flatten(0, 1)

    def _varlen(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, options: AttentionOptions
    ) -> Tensor:
        joined = self.joined
        assert joined is not None
        keys, values = key, value
        if len(self.read):
            old = self.cache.read(layer, self.read)
            keys, values = (
                torch.cat(rows).index_select(0, joined.order)
                for rows in zip(old, (key, value), strict=True)
            )
        return attend_varlen(
            query,
            keys,
            values,
            query_boundaries=joined.query_boundaries,
            key_boundaries=joined.key_boundaries,
            longest_query=joined.longest_query,
            longest_key=joined.longest_key,
            scaling=options.scaling,
            window=options.window,
            causal=True,
        )


def _runs(lengths: IntArray, prefixes: IntArray) -> Sequence[_Run]:
    changes = np.flatnonzero(np.diff(lengths) | np.diff(prefixes)) + 1
    firsts = np.concatenate(([0], changes))
    counts = np.diff(np.concatenate((firsts, [len(lengths)])))
    rows = np.cumsum(lengths) - lengths
    slots = np.cumsum(prefixes) - prefixes
    columns = (rows[firsts], counts, lengths[firsts], prefixes[firsts], slots[firsts])
    runs = (_Run(*run) for run in zip(*(column.tolist() for column in columns), strict=True))
    return [part for run in runs for part in _slices(run)]


def _slices(run: _Run) -> Iterator[_Run]:
    """The run in parts whose keys take a bounded memory."""
    step = max(1, MOST_KEYS // (run.prefix + run.length))
    for first in range(0, run.texts, step):
        yield run._replace(
            row=run.row + first * run.length,
            texts=min(step, run.texts - first),
            slot=run.slot + first * run.prefix,
        )


def _distinct(slots: IntArray) -> tuple[IntArray, IntArray]:
    """Each slot once, and for every one of `slots` its place among those."""
    if not len(slots):
        return slots, slots
    last = np.empty(int(slots.max()) + 1, dtype=np.int64)  # only what is written to is touched
    places = np.arange(len(slots))
    last[slots] = places
    stands_for = last[slots]
    is_first = stands_for == places
    return slots[is_first], (np.cumsum(is_first) - 1)[stands_for]


def _key_order(lengths: IntArray, prefixes: IntArray, places: IntArray, read: int) -> IntArray:
    """Where each sequence's keys are among `read` ones and then the row's: prefix, then its own."""
    keys = lengths + prefixes
    starts = np.cumsum(keys) - keys
    order = np.empty(int(keys.sum()), dtype=np.int64)
    order[_ranges(starts, prefixes)] = places
    order[_ranges(starts + prefixes, lengths)] = read + np.arange(int(lengths.sum()))
    return order


def _edges(lengths: IntArray) -> IntArray:
    return np.concatenate(([0], np.cumsum(lengths)))


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """`start, start + 1, …` for each, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
