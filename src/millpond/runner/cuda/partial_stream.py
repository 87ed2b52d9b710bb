"""Streams whose kernels leave some of a GPU's multiprocessors free, for those of other streams.

A multiprocessor that a large kernel holds is free again when one of its blocks ends, 20 to 40 µs
later. A short pass is a chain of a hundred small kernels, and each would wait that long, whatever
its priority, unless some multiprocessors are not the large kernel's to take. What CUDA calls a
green context has a share of them; torch has had green contexts since 2.11.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.cuda.green_contexts import GreenContext

__all__ = ["multiprocessors_for_bulk", "partial_stream"]

LEFT_FREE = 1 / 8  # of the multiprocessors, at least: 20 of an H200's 132, in its units
# They are shared out in units of a few: how many, from a major compute capability on.
UNITS = {9: 8, 0: 2}

# For as long as the process runs: nothing says that a context may end before its streams.
_contexts: list[Any] = []


def multiprocessors_for_bulk(device: torch.device) -> int | None:
    """How many of a device's multiprocessors bulk kernels have beside queries.

    None where its multiprocessors cannot be shared out.
    """
    if device.index is None or not hasattr(torch._C, "_CUDAGreenContext"):  # a CPU, an older torch
        return None
    properties = torch.cuda.get_device_properties(device)
    unit = next(unit for major, unit in UNITS.items() if properties.major >= major)
    most = int(properties.multi_processor_count * (1 - LEFT_FREE))
    return most // unit * unit or None


def partial_stream(device: torch.device, multiprocessors: int) -> torch.cuda.Stream:
    """A stream whose kernels run on that many multiprocessors; others may use those too.

    Raises `RuntimeError` where torch or the driver refuses it.
    """
    try:
        context: Any = GreenContext.create(num_sms=multiprocessors, device_id=device.index)
        stream: torch.cuda.Stream = context.Stream()
    except Exception as error:  # it may change in torch, and drivers refuse in many ways
        raise RuntimeError(f"no stream on a part of {device}: {error}") from error
    _contexts.append(context)
    return stream
