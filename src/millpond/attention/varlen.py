"""The variable-length CUDA kernel, and what the installed torch's version of it can do."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

__all__ = ["attend_varlen", "uses_varlen"]

_VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters)  # more in newer releases


def uses_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the variable-length CUDA kernel serves this device and dtype."""
    half = dtype in (torch.float16, torch.bfloat16)
    return device.type == "cuda" and half and "window_size" in _VARLEN_OPTIONS


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_boundaries: Tensor,
    key_boundaries: Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float | None,
    window: int | None,
    causal: bool,
    deterministic: bool = False,
) -> Tensor:
    """The variable-length CUDA kernel, `[total, heads, size]` in and out.

    Boundaries are `cu_seqlens`, int32 `[n + 1]`. Where a sequence has more keys than queries, the
    last query stands at the last key.
    """
    reach = -1 if window is None else window - 1
    options: dict[str, Any] = {"window_size": (reach, 0 if causal else reach)}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in _VARLEN_OPTIONS:
            options["enable_gqa"] = True
        elif not _shares_keys(query.device, query.dtype):
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if deterministic and _can_keep_keys_whole(query.device, query.dtype):
        options["num_splits"] = 1
    bounds = (query_boundaries, key_boundaries, longest_query, longest_key)
    out = varlen_attn(query, key, value, *bounds, scale=scaling, **options)
    assert isinstance(out, Tensor)
    return out


@functools.cache
def _can_keep_keys_whole(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel takes `num_splits`. In some builds the option is there and refused."""
    if "num_splits" not in _VARLEN_OPTIONS:
        return False
    rows = torch.zeros(2, 1, 64, device=device, dtype=dtype)
    bounds = torch.tensor([0, 2], dtype=torch.int32, device=device)
    try:
        options: dict[str, Any] = {"window_size": (-1, -1), "num_splits": 1}
        varlen_attn(rows, rows, rows, bounds, bounds, 2, 2, scale=0.1, **options)
    except (RuntimeError, ValueError):
        return False
    return True


@functools.cache
def _shares_keys(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel lets heads share keys unasked, as it does where there is no option."""
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(7, 6, 64, generator=generator, device=device, dtype=dtype)
    query, key, value = rows[:, :4], rows[:, 4:], rows[:, 2:4]
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32, device=device)

    def attended(key: Tensor, value: Tensor) -> Any:
        return varlen_attn(query, key, value, bounds, bounds, 4, 4, scale=0.1, window_size=(-1, -1))

    expected = attended(*(x.repeat_interleave(2, dim=1) for x in (key, value)))
    try:
        return torch.equal(attended(key, value), expected)
    except (RuntimeError, ValueError):
        return False
