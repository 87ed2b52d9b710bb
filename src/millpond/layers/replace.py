"""Faster layers in the place of a model's own, each compared with the one it replaces.

A candidate takes a layer's place only if both give the same on rows of noise, up to rounding. One
that raises, whatever it objects to, is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["PROBE_ROWS", "TOLERANCE", "first_equal", "probe_rows", "replace_children"]

PROBE_ROWS = 17
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""The distance that rounding explains, of the length of what is expected, by its dtype."""

Candidate = TypeVar("Candidate", bound=Callable[..., Any])


@torch.no_grad()
def replace_children(
    model: nn.Module,
    replacement: Callable[[nn.Module], nn.Module | None],
    *,
    keep: Container[nn.Module] = (),
) -> int:
    """Put `replacement(child)` in the place of every child that has one, but for those to `keep`.

    How many were replaced is returned.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            found = None if child in keep else replacement(child)
            if found is not None:
                setattr(parent, name, found)
                replaced += 1
    return replaced


def first_equal(
    layer: Callable[..., Any],
    candidates: Iterable[Candidate],
    *inputs: Tensor,
    tolerance: float | None = None,
    by_row: bool = False,
) -> Candidate | None:
    """The first candidate that gives what the layer gives for these inputs; None without one.

    The layer and its candidates return a tensor or a tuple of them. `tolerance` (None: by dtype)
    is a distance relative to the length of the expected tensor, or `by_row` of each of its rows.
    Candidates may be made one at a time, by code that raises.
    """
    try:
        expected = _tensors(layer(*inputs))
        for candidate in candidates:
            found = _tensors(candidate(*inputs))
            if all(
                _are_close(one, other, tolerance, by_row)
                for one, other in zip(found, expected, strict=True)
            ):
                return candidate
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # a layer that is called otherwise, or a kernel that is not for this device
        return None
    return None


def probe_rows(*shape: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Rows of noise, the same whenever they are asked for; on the CPU unless told otherwise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device or "cpu", dtype)


def _tensors(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else output


def _are_close(found: Tensor, expected: Tensor, tolerance: float | None, by_row: bool) -> bool:
    if found.dtype != expected.dtype:
        return False
    most = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    dim = -1 if by_row else None
    distances = (found.float() - expected.float()).norm(dim=dim)
    return bool((distances <= most * expected.float().norm(dim=dim)).all())
