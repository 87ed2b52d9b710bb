"""One attention function for every model: each sequence of a packed row on its own.

A model's code calls it in place of its stock attention once the model's implementation is set to
`ATTENTION_NAME` (`implementations`), and hands through the `packed_sequences=` keyword that the
forward was called with. It holds no state, so any number of engines may share its registration.

It knows which rows belong together and nothing of texts, requests or batches.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from ..cpu.preemption import yield_to_queries
from .causal_tiles import Masks, attend_in_tiles
from .compiled import (
    LEAST_LENGTH,
    Kernel,
    Places,
    attend_compiled,
    can_be_compiled,
    load_kernel,
)
from .varlen import attend_varlen, in_float8

__all__ = [
    "ATTENTION_NAME",
    "AttentionOptions",
    "PackedSequences",
    "Sequences",
    "as_batch",
    "end_to_end",
]

ATTENTION_NAME = "millpond"
# Measured on AMX with 12 heads of 32: from 6 keys beyond a step on, padding is quicker.
KEY_STEP, LEAST_REST, MOST_PADDED_KEYS = 16, 6, 256
# They change the scores, by too little at times for a comparison at load to notice.
_SCORE_OPTIONS = ("softcap", "s_aux", "position_bias")


class AttentionOptions(NamedTuple):
    """What a layer asks its attention for."""

    scaling: float | None
    """What scores are multiplied by; None for the usual root of the size of a head."""
    window: int | None
    """A token sees those that are fewer positions away."""
    causal: bool
    layer: int | None = None
    float8_scale: float | None = None
    """What the result is multiplied by, to come in e4m3; None for that of the values."""


@dataclass(frozen=True)
class PackedSequences:
    """Where sequences begin and end in a row of `[1, total, …]`.

    `groups` are runs of neighbours of equal length, `(start row, sequences, length)`. `boundaries`
    is `cu_seqlens`, int32 `[n + 1]` on the model's device, and is needed by the CUDA kernel only.
    """

    groups: tuple[tuple[int, int, int], ...]
    longest: int
    boundaries: Tensor | None = None
    deterministic: bool = False
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)
    causal_masks: Masks = field(default_factory=dict, repr=False)
    blocks: dict[int, list[tuple[int, PackedSequences]]] = field(default_factory=dict, repr=False)
    divided: dict[int, Divided] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def total(self) -> int:
        """Rows of all sequences; those that follow belong to none."""
        start, count, length = self.groups[-1]
        return start + count * length

    @functools.cached_property
    def places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The first row and the length of each sequence."""
        firsts, counts, lengths = np.array(self.groups, np.int64).T
        lengths = np.repeat(lengths, counts)
        return firsts[0] + np.cumsum(lengths) - lengths, lengths

    @classmethod
    def of(
        cls,
        lengths: npt.NDArray[np.int64],
        *,
        boundaries: Tensor | None = None,
        deterministic: bool = False,
    ) -> PackedSequences:
        """Describe sequences of these lengths, in this order.

        Deterministic ones share no call: how many are alike depends on the batch.
        """
        if len(lengths) == 1:
            length = int(lengths[0])
            return cls(((0, 1, length),), length, boundaries, deterministic)
        changes = np.flatnonzero(np.diff(lengths) | deterministic) + 1
        firsts = np.concatenate(([0], changes))
        counts = np.diff(np.concatenate((firsts, [len(lengths)])))
        starts = np.cumsum(lengths) - lengths
        groups = zip(
            starts[firsts].tolist(), counts.tolist(), lengths[firsts].tolist(), strict=True
        )
        return cls(tuple(groups), int(lengths.max()), boundaries, deterministic)

    def among(self, groups: Iterable[tuple[int, int, int]]) -> PackedSequences:
        """Some of these groups, or parts of them, on their own."""
        return replace(self, groups=tuple(groups), blocks={}, divided={})

    def divided_at(self, length: int) -> Divided:
        """Those that are shorter, and the others; made once a batch."""
        if length not in self.divided:
            starts, lengths = self.places
            numbers = np.flatnonzero(lengths >= length)
            groups = [group for group in self.groups if group[2] < length]
            short = self.among(groups) if groups else None
            self.divided[length] = Divided(short, starts[numbers], lengths[numbers], numbers)
        return self.divided[length]

    def in_blocks(self, rows: int) -> list[tuple[int, PackedSequences]]:
        """Neighbours of `rows` rows together at most, or a sequence that is longer: the first row
        of each block, and its sequences."""
        if rows not in self.blocks:
            self.blocks[rows] = _blocks(self, rows)
        return self.blocks[rows]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        """`[heads, total, size]` in, `[total, heads, size]` out."""
        if self.boundaries is None:
            return in_float8(_grouped(query, key, value, self, options), options.float8_scale)
        return attend_varlen(
            *(rows.transpose(0, 1) for rows in (query, key, value)),
            query_boundaries=self.boundaries,
            key_boundaries=self.boundaries,
            longest_query=self.longest,
            longest_key=self.longest,
            scaling=options.scaling,
            window=options.window,
            causal=options.causal,
            deterministic=self.deterministic,
            float8_scale=options.float8_scale,
        )

    def window_mask(self, length: int, window: int, device: torch.device) -> Tensor:
        """Which keys each query of a sequence sees, bool `[length, length]`, made once a batch."""
        key = (length, window)
        if key not in self.masks:
            position = torch.arange(length, device=device)
            self.masks[key] = (position[:, None] - position[None, :]).abs() < window
        return self.masks[key]

    def key_lengths(self, rows: Tensor) -> list[int]:
        """Keys that the kernel is quickest with in each group, for queries like `rows`."""
        return [
            length + (-length % KEY_STEP if wants_whole_steps(length, rows) else 0)
            for _, _, length in self.groups
        ]

    def whole_step(self, length: int, rows: Tensor) -> tuple[int, Tensor]:
        """What is missing to a whole number of steps of keys, and the mask that hides it."""
        missing = -length % KEY_STEP
        place = (length, -1)  # no window is as long
        if place not in self.masks:
            mask = rows.new_zeros(length + missing)
            mask[length:] = -torch.inf
            self.masks[place] = mask.expand(length, length + missing)
        return missing, self.masks[place]


class Divided(NamedTuple):
    """Sequences that are shorter than some length, and of the others where they are; int64."""

    short: PackedSequences | None
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    """Which of all sequences they are."""


class Sequences(Protocol):
    """What stands in a packed row, and how its sequences attend."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        """`[heads, total, size]` in, `[total, heads, size]` out."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_sequences: Sequences,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed row: `[1, heads, total, size]` in, `[1, total, heads, size]` out.

    Follows transformers' conventions: a module is causal unless it says otherwise, and a window
    of `w` lets a token see those fewer than `w` positions away. Raises `NotImplementedError` for
    an option that neither of the kernels has.
    """
    for name in _SCORE_OPTIONS:
        if options.get(name) is not None:
            raise NotImplementedError(f"its attention has {name}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    yield_to_queries()
    layer = getattr(module, "layer_idx", None)
    asked = AttentionOptions(scaling, sliding_window, causal, layer)
    out = packed_sequences.attend(query[0], key[0], value[0], asked)
    return out.unsqueeze(0), None


def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: PackedSequences,
    options: AttentionOptions,
) -> Tensor:
    kernel = _compiled_kernel(query, key, value, sequences, options)
    if kernel is None:
        parts = _by_torch(query, key, value, sequences, options)
        return end_to_end(parts, query.shape[1])
    short, starts, lengths, _ = sequences.divided_at(LEAST_LENGTH)
    out = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
    out[sequences.total :] = 0
    if short is not None:
        parts = _by_torch(query, key, value, short, options)
        for (start, count, length), rows in zip(short.groups, parts, strict=True):
            out[start : start + count * length] = rows
    places = Places(starts, lengths, starts)
    scaling, window, *_ = options
    attend_compiled(kernel, query, key, value, out, places, scaling=scaling, window=window)
    return out


def _compiled_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: PackedSequences,
    options: AttentionOptions,
) -> Kernel | None:
    """The kernel of ours, if one of them attends by it."""
    sizes = {rows.shape[2] for rows in (query, key, value)}
    if options.causal or len(sizes) > 1 or sequences.longest < LEAST_LENGTH:
        return None
    is_fit = query.device.type == "cpu" and can_be_compiled(query.dtype, query.shape[2])
    return load_kernel() if is_fit else None


def _by_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: PackedSequences,
    options: AttentionOptions,
) -> list[Tensor]:
    """Of each group its rows, `[sequences × length, heads, size]`."""
    parts = []
    scaling, window, causal, *_ = options
    for start, count, length in sequences.groups:
        queries, keys, values = (as_batch(x, start, count, length) for x in (query, key, value))
        if causal:
            attended = attend_in_tiles(
                queries,
                keys,
                values,
                scaling=scaling,
                window=window,
                masks=sequences.causal_masks,
            )
        else:
            mask = None
            if window is not None and length > window:
                mask = sequences.window_mask(length, window, query.device)
            elif wants_whole_steps(length, query):
                missing, mask = sequences.whole_step(length, query)
                keys, values = (pad(x, (0, 0, 0, missing)) for x in (keys, values))
            attended = scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                scale=scaling,
                enable_gqa=query.shape[0] != key.shape[0],
            )
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return parts


def _blocks(sequences: PackedSequences, rows: int) -> list[tuple[int, PackedSequences]]:
    found: list[tuple[int, PackedSequences]] = []
    groups: list[tuple[int, int, int]] = []
    first = taken = 0
    for start, count, length in sequences.groups:
        while count:
            fits = min(count, max((rows - taken) // length, 0 if groups else 1))
            if fits:
                groups.append((start - first, fits, length))
                start, count, taken = start + fits * length, count - fits, taken + fits * length
            if count:  # the block is full
                found.append((first, sequences.among(groups)))
                groups, first, taken = [], start, 0
    return [*found, (first, sequences.among(groups))]


def end_to_end(parts: list[Tensor], total: int) -> Tensor:
    """One row of all parts, and zeros for what belongs to no sequence."""
    rest = total - sum(map(len, parts))
    if rest:
        parts = [*parts, parts[0].new_zeros(rest, *parts[0].shape[1:])]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def wants_whole_steps(length: int, query: Tensor) -> bool:
    """Whether the kernel is quicker with masked keys at the end.

    A CPU's bfloat16 kernel takes longer for 79 keys than for 80: its time falls at whole steps.
    """
    is_short = length < MOST_PADDED_KEYS and length % KEY_STEP >= LEAST_REST
    return is_short and query.dtype == torch.bfloat16 and query.device.type == "cpu"


def as_batch(rows: Tensor, start: int, count: int, length: int) -> Tensor:
    """Neighbours of equal length as a batch, without a copy: `[count, heads, length, size]`."""
    heads, _, size = rows.shape
    run = rows[:, start : start + count * length]
    return run.view(heads, count, length, size).transpose(0, 1)
