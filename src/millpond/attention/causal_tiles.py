"""Causal attention on a CPU in tiles of fixed shape, at fixed places of a text.

How a matrix product rounds depends on its shape, and in what way, on the processor and its
library. So every tile of queries is a call of its own, on as many keys as its place in the text
asks for: a row's products have the same shape whether its text is computed whole or continues from
a cache, and however long the text is. Nothing is computed twice: exactly the keys that
a tile can see are multiplied, and the rows of a tile are those that torch's kernel takes at a time
anyway.

It knows texts of one length, and not where their keys come from.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

__all__ = ["Masks", "attend_in_tiles"]

TILE = 32
# Elsewhere than on a CPU no bits are promised, and fewer calls are quicker.
LARGEST_TILE = 160
Masks = dict[int | None, Tensor]
"""What is added to the scores of a tile, by window: the same in every layer of a pass."""


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
    tile = TILE
    if query.device.type != "cpu":
        tile = min(-(-total // TILE) * TILE, LARGEST_TILE)
    first, before = (total - new) // tile * tile, (total - new) % tile
    after = -total % tile
    if before or after:
        query = pad(query, (0, 0, before, after))
    if after:
        key, value = (pad(each, (0, 0, 0, after)) for each in (key, value))
    mask = _mask(masks, window, tile, total + after, query)
    parts = []
    for start in range(first, total, tile):
        stop = start + tile
        low = 0 if window is None else max(0, start - window + 1) // tile * tile
        part = scaled_dot_product_attention(
            query[:, :, start - first : stop - first],
            key[:, :, low:stop],
            value[:, :, low:stop],
            attn_mask=mask[:, low - stop :],
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(part)
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out[:, :, before : before + new]


def _mask(masks: Masks, window: int | None, tile: int, keys: int, query: Tensor) -> Tensor:
    """What is added to the scores of a tile with its last keys, `[tile, keys or more]`.

    How far a key is from a query depends on where both are before the tile's end, so the last
    columns serve a tile at any place. Rows beyond a text are not read, and see some key.
    """
    mask = masks.get(window)
    if mask is None or mask.shape[1] < keys:
        queries = torch.arange(keys - tile, keys, device=query.device)
        distance = queries[:, None] - torch.arange(keys, device=query.device)
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        mask = query.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        masks[window] = mask
    return mask
