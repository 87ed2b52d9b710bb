"""Attention in a packed row with tokens that no token attends to.

ColBERT fills queries up so: what fills up attends to the query, and nothing to what fills up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .packed import PackedSequences
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
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        window: int | None,
        causal: bool,
        layer: int | None = None,
        float8_scale: float | None = None,
    ) -> Tensor:
        """`[heads, total, size]` in, `[total, heads, size]` out, in e4m3 with a `float8_scale`."""
        parts, start = [], 0
        options: dict[str, Any] = {"scaling": scaling, "window": window, "causal": causal}
        for length, count in self._runs:
            end = start + count * length
            rows = (query[:, start:end], key[:, start:end], value[:, start:end])
            if self.hidden[start:end].any():
                parts.append(self._masked(*rows, start, length, count, **options))
            else:  # as in a batch where nothing is hidden
                parts.append(self._plain(length, count).attend(*rows, **options))
            start = end
        if start < query.shape[1]:  # rows that belong to no sequence
            parts.append(query.new_zeros(query.shape[1] - start, *parts[0].shape[1:]))
        return in_float8(parts[0] if len(parts) == 1 else torch.cat(parts), float8_scale)

    def _masked(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        length: int,
        count: int,
        *,
        scaling: float | None,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        """Sequences of one length, `[heads, count × length, size]` in."""
        queries, keys, values = (
            rows.view(rows.shape[0], count, length, -1).transpose(0, 1)
            for rows in (query, key, value)
        )
        attended = scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=self._mask(start, length, count, window, causal, query.device),
            scale=scaling,
            enable_gqa=query.shape[0] != key.shape[0],
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

    def _mask(
        self,
        start: int,
        length: int,
        count: int,
        window: int | None,
        causal: bool,
        device: torch.device,
    ) -> Tensor:
        """Which keys each query sees, bool `[count, 1, length, length]`, made once a batch."""
        place = (start, window, causal)
        if place not in self.masks:
            hidden = torch.from_numpy(self.hidden[start : start + count * length]).to(device)
            seen = ~hidden.view(count, 1, 1, length)
            distance = torch.arange(length, device=device)[:, None] - torch.arange(
                length, device=device
            )
            if causal:
                seen = seen & (distance >= 0)
            if window is not None:
                seen = seen & (distance.abs() < window)
            self.masks[place] = seen.expand(-1, -1, length, -1)
        return self.masks[place]
