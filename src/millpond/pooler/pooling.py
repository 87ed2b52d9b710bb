"""Pooling: the token rows of many texts to one row each, in six modes and their concatenations.

Every text is reduced on its own, so its vector is batch-invariant. It knows
no modules and no files; `head` decides what to pool and with which modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["POOLING", "TokenRows", "pool", "weighted_layers"]

# The smallest denominator, so that a text without pooled tokens gives zeros.
_EPSILON = 1e-9
_MODES = {"sum": 0, "max": 2}  # torch's numbers for them


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Token rows, and which of them each text pools.

        rows     . . P P P t t t t t . . P P P t t . .
                     ^start  ^begin  ^end

    `.` belongs to no text, `P` is the prompt where it is left out (`begin` is `start` where it is
    not), `t` is pooled. Texts lie in ascending order and do not overlap.
    """

    rows: Tensor
    """float32 [rows, width], contiguous."""
    starts: Tensor
    """int64 [n]."""
    begins: Tensor
    """int64 [n]."""
    ends: Tensor
    """int64 [n]."""

    @classmethod
    def of(
        cls, rows: Tensor, starts: Tensor, lengths: Tensor, prompt_lengths: Tensor | None
    ) -> TokenRows:
        """`prompt_lengths` int64 [n] are the tokens to leave out; None leaves out nothing."""
        ends = starts + lengths
        begins = starts
        if prompt_lengths is not None:
            begins = starts + torch.minimum(prompt_lengths, lengths)
        if starts.device.type == "cpu" and len(starts):
            assert int(ends[-1]) <= len(rows)
            assert len(starts) == 1 or bool((starts[1:] >= ends[:-1]).all())
        return cls(rows.contiguous(), starts, begins, ends)

    @cached_property
    def counts(self) -> Tensor:
        """Pooled tokens of each text, float32 [n, 1]."""
        return (self.ends - self.begins).to(torch.float32).unsqueeze(1)

    @cached_property
    def sums(self) -> Tensor:
        """The sum of each text's pooled rows, float32 [n, width]."""
        return self.reduce("sum")

    def reduce(self, mode: str, row_weights: Tensor | None = None) -> Tensor:
        """Each text's pooled rows as one bag, and everything between two texts as a bag too.

        That needs nothing from the device and no row indices beyond a range; the bags between
        are thrown away.
        """
        if len(self.starts) == 1 and self.rows.device.type == "cpu":
            return self._reduce_one(mode, row_weights)
        bounds = torch.stack([self.begins, self.ends], dim=1).flatten()
        bags = embedding_bag(
            torch.arange(len(self.rows), device=self.rows.device),
            self.rows,
            torch.cat([bounds.new_zeros(1), bounds]),
            mode=mode,
            per_sample_weights=row_weights,
        )
        return bags[1::2]

    def _reduce_one(self, mode: str, row_weights: Tensor | None) -> Tensor:
        """The same kernel for the rows of a single text, with less to tell it."""
        begin, end = int(self.begins), int(self.ends)
        return torch.embedding_bag(
            self.rows[begin:end],
            torch.arange(end - begin),
            torch.zeros(1, dtype=torch.int64),
            mode=_MODES[mode],
            per_sample_weights=None if row_weights is None else row_weights[begin:end],
        )[0]


def pool(tokens: TokenRows, modes: Sequence[str]) -> Tensor:
    """One vector per text, float32 [n, len(modes) * width]: the modes side by side."""
    if len(modes) == 1:
        return POOLING[modes[0]](tokens)
    return torch.cat([POOLING[mode](tokens) for mode in modes], dim=1)


def weighted_layers(layers: Sequence[Tensor], *, start: int, weights: Tensor) -> Tensor:
    """The weighted mean of the hidden states from layer `start` on, float32 [rows, width].

    `layers` are all hidden states, the embeddings first; `weights` is float32 [layers - start].
    """
    used = layers[start:]
    assert len(used) == len(weights)
    total = used[0].float() * weights[0]
    for layer, weight in zip(used[1:], weights[1:], strict=True):
        total = total + layer.float() * weight
    return total / weights.sum()


def _first(tokens: TokenRows) -> Tensor:
    # A text that is nothing but its prompt gives the prompt's first token.
    first = torch.where(tokens.begins < tokens.ends, tokens.begins, tokens.starts)
    return tokens.rows.index_select(0, first)


def _last(tokens: TokenRows) -> Tensor:
    last = tokens.rows.index_select(0, (tokens.ends - 1).clamp(min=0))
    return torch.where(tokens.counts > 0, last, 0.0)


def _mean(tokens: TokenRows) -> Tensor:
    return tokens.sums / tokens.counts.clamp(min=_EPSILON)


def _mean_sqrt_length(tokens: TokenRows) -> Tensor:
    return tokens.sums / tokens.counts.clamp(min=_EPSILON).sqrt()


def _maximum(tokens: TokenRows) -> Tensor:
    return torch.where(tokens.counts > 0, tokens.reduce("max"), -torch.inf)


def _position_weighted_mean(tokens: TokenRows) -> Tensor:
    """Token k of a text, counted from 1 and from before the prompt, weighs k."""
    rows = torch.arange(len(tokens.rows), device=tokens.rows.device)
    text = (torch.searchsorted(tokens.starts, rows, right=True) - 1).clamp(min=0)
    weights = (rows - tokens.starts[text] + 1).to(torch.float32)
    sums = tokens.reduce("sum", weights)
    skipped, length = tokens.begins - tokens.starts, tokens.ends - tokens.starts
    total = (length * (length + 1) - skipped * (skipped + 1)) // 2
    return sums / total.to(torch.float32).unsqueeze(1).clamp(min=_EPSILON)


POOLING: dict[str, Callable[[TokenRows], Tensor]] = {
    "cls": _first,
    "max": _maximum,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_length,
    "weightedmean": _position_weighted_mean,
    "lasttoken": _last,
}
