"""The variable-length CUDA kernel, and what the installed torch's version of it can do."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["attend_varlen", "in_float8", "uses_varlen"]

logger = logging.getLogger("millpond")

MOST_DISTANCE = 1e-2  # of two kernels in half precision, relative to what they give


LARGEST = 448.0  # of e4m3


def varlen_attn(*arguments: Any, **options: Any) -> Any:
    """torch's kernel. Importing it takes as long as importing the rest of torch."""
    return _torch_varlen_attn()(*arguments, **options)


@functools.cache
def _torch_varlen_attn() -> Callable[..., Any]:
    found: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return found


def _has_option(name: str) -> bool:
    """Whether torch's kernel has an option: newer releases have more."""
    return name in inspect.signature(_torch_varlen_attn()).parameters


def uses_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the variable-length CUDA kernel serves this device and dtype."""
    half = dtype in (torch.float16, torch.bfloat16)
    return device.type == "cuda" and half and _has_option("window_size")


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
    float8_scale: float | None = None,
) -> Tensor:
    """The variable-length CUDA kernel, `[total, heads, size]` in and out.

    Boundaries are `cu_seqlens`, int32 `[n + 1]`. Where a sequence has more keys than queries, the
    last query stands at the last key. With a `float8_scale` the result comes times that, in e4m3.
    """
    own = _own_kernel(query.device, query.dtype, query.shape[2])
    if own is not None:
        return own(
            query,
            key,
            value,
            query_boundaries=query_boundaries,
            key_boundaries=key_boundaries,
            longest_query=longest_query,
            scaling=scaling,
            window=window,
            causal=causal,
            deterministic=deterministic,
            float8_scale=float8_scale,
        )
    reach = -1 if window is None else window - 1
    options: dict[str, Any] = {"window_size": (reach, 0 if causal else reach)}
    if query.shape[1] != key.shape[1]:
        if _has_option("enable_gqa"):
            options["enable_gqa"] = True
        elif not _shares_keys(query.device, query.dtype):
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if deterministic and _can_keep_keys_whole(query.device, query.dtype):
        options["num_splits"] = 1
    bounds = (query_boundaries, key_boundaries, longest_query, longest_key)
    out = varlen_attn(query, key, value, *bounds, scale=scaling, **options)
    assert isinstance(out, Tensor)
    return in_float8(out, float8_scale)


def in_float8(rows: Tensor, scale: float | None) -> Tensor:
    """Rows times a scale in e4m3, in operators of their own; as they are without one."""
    if scale is None:
        return rows
    return (rows.float() * scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


@functools.cache
def _own_kernel(
    device: torch.device, dtype: torch.dtype, size: int
) -> Callable[..., Tensor] | None:
    """`triton_varlen.attend`, where it gives what torch's kernel gives for heads of this size."""
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(90, 6, size, generator=generator, device=device, dtype=dtype)
    parts = (rows[:, :2], rows[:, 2:4], rows[:, 4:])
    bounds = torch.tensor([0, 70, 90], dtype=torch.int32, device=device)
    try:
        attend: Callable[..., Tensor] = importlib.import_module(
            ".triton_varlen", __package__
        ).attend
        found = attend(
            *parts,
            query_boundaries=bounds,
            key_boundaries=bounds,
            longest_query=70,
            scaling=0.1,
            window=None,
            causal=False,
        )
        expected: Any = varlen_attn(*parts, bounds, bounds, 70, 70, scale=0.1, window_size=(-1, -1))
    except Exception as error:  # no Triton, no C compiler, a size it does not have
        logger.info("attention runs in torch's kernel: %s", error)
        return None
    distance = (found.float() - expected.float()).norm() / expected.float().norm()
    return attend if distance < MOST_DISTANCE else None


@functools.cache
def _can_keep_keys_whole(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel takes `num_splits`. In some builds the option is there and refused."""
    if not _has_option("num_splits"):
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
