"""The operators of a fused encoder, in functions that are Python and TorchScript (`scripted`).

Where a token stands is told by `groups`, which are runs of neighbours of equal length: first row,
sequences, length (`PackedSequences`). `key_lengths` are the keys that each group's kernel is given,
those beyond its length masked.
"""

from __future__ import annotations

import torch
from torch import Tensor


def embed_tokens(
    ids: Tensor,
    positions: Tensor,
    types: Tensor | None,
    tables: list[Tensor],
    norm: list[Tensor | None],
    epsilon: float,
) -> Tensor:
    """BERT's embeddings `[total, width]`; `tables` are of words, types and positions."""
    added = tables[1][0] if types is None else torch.embedding(tables[1], types)
    rows = torch.embedding(tables[0], ids).add_(added).add_(torch.embedding(tables[2], positions))
    return torch.layer_norm(rows, [rows.size(1)], norm[0], norm[1], epsilon)


def masks_of_groups(
    rows: Tensor, groups: list[tuple[int, int, int]], key_lengths: list[int]
) -> list[Tensor]:
    """What hides each group's keys beyond its length, `[length, keys]` in the dtype of the rows."""
    masks: list[Tensor] = []
    for place in range(len(groups)):
        _, _, length = groups[place]
        keys = key_lengths[place]
        mask = rows.new_zeros([keys if keys > length else 0])
        if keys > length:
            mask[length:].fill_(-float("inf"))
        masks.append(mask.expand(length, mask.size(0)))
    return masks


def attend_in_groups(
    joined: Tensor,
    groups: list[tuple[int, int, int]],
    masks: list[Tensor],
    head_size: int,
    scaling: float,
    queries: int,
) -> Tensor:
    """Attention within each sequence, those of one length at a time.

    Query, key and value `[n, 3 × heads × size]` in, `[n, heads × size]` out. With `queries` that
    number of tokens of each sequence attends, and the first of them is given: `[sequences, heads ×
    size]`.
    """
    found: list[Tensor] = []
    width = joined.size(1) // 3
    stop = 0
    for place in range(len(groups)):
        start, count, length = groups[place]
        stop = start + count * length
        run = joined[start:stop].view(count, length, 3, -1, head_size)
        parts = run.permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        mask: Tensor | None = None
        keys = masks[place].size(1)
        if keys > length:
            mask = masks[place]
            if count == 1 and place == len(groups) - 1 and start + keys <= joined.size(0):
                # Masked keys may as well be the rows that belong to no sequence.
                longer = joined[start : start + keys].view(1, keys, 3, -1, head_size)[:, :, 1:]
            else:
                longer = run.new_zeros([count, keys, 2, run.size(3), head_size])
                longer[:, :length].copy_(run[:, :, 1:])
            both = longer.permute(2, 0, 3, 1, 4)
            key, value = both[0], both[1]
        if queries > 0:
            query = query[:, :, :queries]
            if mask is not None:
                mask = mask[:queries]
        attended = torch._C._nn.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling
        )
        if queries > 0:
            found.append(attended[:, :, 0].reshape(count, width))
        else:
            found.append(attended.transpose(1, 2).reshape(stop - start, width))
    if queries == 0 and stop < joined.size(0):  # rows that belong to no sequence
        found.append(joined.new_zeros([joined.size(0) - stop, width]))
    return found[0] if len(found) == 1 else torch.cat(found)


def attend_firsts(
    joined: Tensor,
    groups: list[tuple[int, int, int]],
    masks: list[Tensor],
    head_size: int,
    scaling: float,
    rows: int,
) -> Tensor:
    """Of the first token of each sequence, and zeros after them: `[rows, heads × size]`.

    Among eight queries, since the kernel for one or two rounds otherwise than that for many.
    """
    found = attend_in_groups(joined, groups, masks, head_size, scaling, 8)
    return torch.cat([found, found.new_zeros([rows - found.size(0), found.size(1)])])


def after_attention(
    attended: Tensor,
    rows: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    norms: list[Tensor | None],
    epsilons: list[float],
) -> Tensor:
    """What a layer makes of its rows `[n, width]` and of what they attended to.

    The prepacked weights and biases are those of three products, and of the two norms it takes what
    each multiplies by and adds.
    """
    width = [rows.size(1)]
    merged = torch.ops.mkldnn._linear_pointwise(attended, rows, weights[0], biases[0], "add")
    rows = torch.layer_norm(merged, width, norms[0], norms[1], epsilons[0])
    up = torch.ops.mkldnn._linear_pointwise(rows, weights[1], biases[1], "gelu", [], "none")
    down = torch.ops.mkldnn._linear_pointwise(up, rows, weights[2], biases[2], "add")
    return torch.layer_norm(down, width, norms[2], norms[3], epsilons[1])


def run_encoder(
    ids: Tensor,
    positions: Tensor,
    types: Tensor | None,
    tables: list[Tensor],
    norm: list[Tensor | None],
    epsilon: float,
    weights: list[Tensor],
    biases: list[Tensor | None],
    norms: list[Tensor | None],
    epsilons: list[float],
    groups: list[tuple[int, int, int]],
    key_lengths: list[int],
    head_size: int,
    scaling: float,
    firsts: Tensor | None,
) -> Tensor:
    """`embed_tokens`, and of what it gives `run_layers`."""
    rows = embed_tokens(ids, positions, types, tables, norm, epsilon)
    return run_layers(
        rows, weights, biases, norms, epsilons, groups, key_lengths, head_size, scaling, firsts
    )


def run_layers(
    rows: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    norms: list[Tensor | None],
    epsilons: list[float],
    groups: list[tuple[int, int, int]],
    key_lengths: list[int],
    head_size: int,
    scaling: float,
    firsts: Tensor | None,
) -> Tensor:
    """All layers, `[total, width]` in and out. Of each in turn: the prepacked weights and biases of
    its four products, and what its two norms multiply by and add.

    With `firsts`, the first row of each sequence and then others, the last layer gives those."""
    masks = masks_of_groups(rows, groups, key_lengths)
    for layer in range(len(weights) // 4):
        product, norm = 4 * layer, 2 * layer
        joined = torch.ops.mkldnn._linear_pointwise(
            rows, weights[product], biases[product], "none", [], "none"
        )
        if firsts is not None and layer == len(weights) // 4 - 1:
            attended = attend_firsts(joined, groups, masks, head_size, scaling, firsts.size(0))
            rows = rows.index_select(0, firsts)
        else:
            attended = attend_in_groups(joined, groups, masks, head_size, scaling, 0)
        rows = after_attention(
            attended,
            rows,
            weights[product + 1 : product + 4],
            biases[product + 1 : product + 4],
            norms[2 * norm : 2 * norm + 4],
            epsilons[norm : norm + 2],
        )
    return rows
