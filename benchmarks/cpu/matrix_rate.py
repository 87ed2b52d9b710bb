"""What the processor can do at most, and what the model asks of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch

SIZE = 1536
SECONDS = 0.4


def matrix_rate(precision: str) -> float:
    """Floating-point operations a second in products of large square matrices, all threads."""
    dtype = getattr(torch, precision)
    left, right = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * SIZE**3 / (time.perf_counter() - started))
    return best


def operations(folder: Path, token_counts: Iterable[int]) -> float:
    """Floating-point operations of the matrix products for texts of these lengths, no padding."""
    config = json.loads((folder / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    per_token = 8 * hidden**2 + 4 * hidden * inner
    texts = (count * per_token + 4 * count**2 * hidden for count in token_counts)
    return float(config["num_hidden_layers"] * sum(texts))
