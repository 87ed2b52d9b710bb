"""The mean of each text's rows on a CPU, in functions that are Python and TorchScript (`scripted`).

It is what most models pool, and a lone query waits for it: called one by one, its dozen operators
take longer than a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_texts(rows: Tensor, starts: Tensor, lengths: Tensor, is_normalized: bool) -> Tensor:
    """Vectors float32 `[n, width]` of rows `[total, width]`, of unit length if `is_normalized`.

    Text i has the `lengths[i]` ≥ 1 rows from `starts[i]` on, int64 `[n]`, in ascending order. Each
    is added up on its own, as `pooling` does it.
    """
    rows = rows.float().contiguous()
    if starts.size(0) == 1:
        begin, count = int(starts[0]), int(lengths[0])
        rows = rows[begin : begin + count]
        offsets = torch.zeros([1], dtype=torch.int64)
    else:  # what is between two texts is a bag too
        bounds = torch.stack([starts, starts + lengths], 1).flatten()
        offsets = torch.cat([bounds.new_zeros([1]), bounds])
    places = torch.arange(rows.size(0))
    sums = torch.embedding_bag(rows, places, offsets, False, 0, False, None)[0]
    if starts.size(0) > 1:
        sums = sums[1::2]
    means = sums / lengths.to(torch.float32).unsqueeze(1)
    if is_normalized:
        means = means / torch.linalg.vector_norm(means, 2.0, [1], True).clamp_min(1e-12)
    return means
