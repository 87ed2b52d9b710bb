"""Attention in a packed row with tokens that no token attends to.

ColBERT fills queries up so: what fills up attends to the query, and nothing to what fills up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .packed import AttentionOptions, PackedSequences, as_batch, end_to_end
from .varlen import in_float8

__all__ = ["FilledSequences"]


@dataclass(frozen=True, eq=False)
class FilledSequences:
    """Sequences of a row `[1, total, …]`, and which of its tokens are hidden from all.

    `alone` gives each sequence a call of its own, whose shape does not depend on the others.
    """

    lengths: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.bool_]
    alone: bool = False
    masks: dict[tuple[int, int | None, bool], Tensor] = field(default_factory=dict, repr=False)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        """`[heads, total, size]` in, `[total, heads, size]` out."""
        parts, start = [], 0
        plain = options._replace(float8_scale=None)
        for length, count in self._runs:
            end = start + count * length
            if self.hidden[start:end].any():
                q, k, v = (as_batch(each, start, count, length) for each in (query, key, value))
                parts.append(self._masked(q, k, v, start, options))
            else:  # as in a batch where nothing is hidden
                q, k, v = (each[:, start:end] for each in (query, key, value))
                parts.append(self._plain(length, count).attend(q, k, v, plain))
            start = end
        return in_float8(end_to_end(parts, query.shape[1]), options.float8_scale)

    def _masked(
        self, query: Tensor, key: Tensor, value: Tensor, start: int, options: AttentionOptions
    ) -> Tensor:
        """Sequences of one length, `[count, heads, length, size]` in."""
        attended = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self._mask(start, query, options),
            scale=options.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attended.transpose(1, 2).flatten(0, 1)

    def _plain(self, length: int, count: int) -> PackedSequences:
        return PackedSequences.of(np.full(count, length, dtype=np.int64), deterministic=self.alone)

    @functools.cached_property
    def _runs(self) -> list[tuple[int, int]]:
        """Neighbours of equal length that are alike in having hidden tokens: that, and how many."""
        ends = np.cumsum(self.lengths)
        before = np.concatenate(([0], np.cumsum(self.hidden)))
        has_hidden = before[ends] > before[ends - self.lengths]
        changes = np.diff(self.lengths) | np.diff(has_hidden) | self.alone
        firsts = np.concatenate(([0], np.flatnonzero(changes) + 1))
        counts = np.diff(np.concatenate((firsts, [len(self.lengths)])))
        return list(zip(self.lengths[firsts].tolist(), counts.tolist(), strict=True))

    def _mask(self, start: int, query: Tensor, options: AttentionOptions) -> Tensor:
        """Which keys each query sees, bool `[count, 1, length, length]`, made once a batch."""
        count, _, length, _ = query.shape
        _, window, causal, *_ = options
        place = (start, window, causal)
        if place not in self.masks:
            device = query.device
            hidden = torch.from_numpy(self.hidden[start : start + count * length]).to(device)
            seen = ~hidden.view(count, 1, 1, length)
            positions = torch.arange(length, device=device)
            distance = positions[:, None] - positions
            if causal:
                seen = seen & (distance >= 0)
            if window is not None:
                seen = seen & (distance.abs() < window)
            self.masks[place] = seen.expand(-1, -1, length, -1)
        return self.masks[place]
