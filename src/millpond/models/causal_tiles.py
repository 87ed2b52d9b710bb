"""Causal attention on a CPU, in tiles of fixed rows at fixed places of a text.

A CPU kernel cuts the queries it is given into pieces, and a row's rounding depends on the piece it
is in, and on how many keys it is given, masked ones too. Here both depend on nothing but the row's
position in its text, so a text whose first tokens come out of a cache has the bits it has when it
is computed whole, whichever text it was that put them there. It costs little: the rows of a piece
are those that the kernel would take at a time anyway.

It knows texts of one length, and not where their keys come from.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

__all__ = ["Masks", "attend_in_tiles"]

TILE = 32
# A call's queries, at multiples of this. With more, torch's kernel takes larger pieces.
TILES_PER_CALL = 5
# A product over no more keys adds them up in order, so that zeros at the end change nothing.
KEYS_IN_ORDER = 320

Masks = dict[tuple[int, int, int | None], Tensor]
"""Which keys the queries of a call see, by where they are; the same in every layer of a pass."""


def attend_in_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    window: int | None,
    masks: Masks,
) -> Tensor:
    """Texts of one length, `[n, heads, length, size]`, of which the last queries are given.

    Keys may have fewer heads, which queries share. The first query stands at
    `key length - query length`, and sees the keys up to itself, no further back than `window`.
    """
    new, total = query.shape[2], key.shape[2]
    before = (total - new) % TILE
    first = total - new - before
    rows = -(-(before + new) // TILE) * TILE
    if rows > new:
        query = pad(query, (0, 0, before, rows - before - new))
    seen = _seen(first + rows)
    if seen > total:
        key, value = (pad(each, (0, 0, 0, seen - total)) for each in (key, value))
    parts = []
    for start, stop in _calls(first, first + rows):
        place = (start, stop, window)
        if place not in masks:
            masks[place] = _mask(*place, query.device)
        part = scaled_dot_product_attention(
            query[:, :, start - first : stop - first],
            key[:, :, : _seen(stop)],
            value[:, :, : _seen(stop)],
            attn_mask=masks[place],
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(part)
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out[:, :, before : before + new]


def _calls(first: int, last: int) -> list[tuple[int, int]]:
    step = TILE * TILES_PER_CALL
    cuts = [first, *range((first // step + 1) * step, last, step), last]
    return list(itertools.pairwise(cuts))


def _seen(stop: int) -> int:
    """How many keys the queries before `stop` are given."""
    step = TILE if stop <= KEYS_IN_ORDER else TILE * TILES_PER_CALL
    return -(-stop // step) * step


def _mask(start: int, stop: int, window: int | None, device: torch.device) -> Tensor:
    """Bool `[stop - start, keys]`. Rows beyond the text are nobody's and see something."""
    keys = torch.arange(_seen(stop), device=device)
    distance = torch.arange(start, stop, device=device)[:, None] - keys[None, :]
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)
