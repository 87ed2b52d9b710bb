"""Which share of an ingestion's time kernels take on the device, from a profiler's trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Result = TypeVar("Result")

LONG_GAP_NS = 50_000
TO_HOST = "Memcpy DtoH"


class Span(NamedTuple):
    """A kernel or a copy, by the device's clock."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class DeviceTime:
    """What a device did from the end of the first batch until that of the last."""

    wall_s: float
    busy_s: float
    """Of it, that some kernel or copy ran."""
    gaps: int
    """Longer than 50 microseconds."""
    gaps_s: float
    """All of those together."""
    by_name: dict[str, tuple[int, float]]
    """Runs, and seconds in all."""

    @property
    def share(self) -> float:
        return self.busy_s / self.wall_s if self.wall_s else 0.0


def device_time(spans: Sequence[Span]) -> DeviceTime:
    """From the end of the first copy to the host on, which is where the first batch ends."""
    ordered = sorted(spans, key=lambda span: span.start_ns)
    ends = [span.end_ns for span in ordered if span.name.startswith(TO_HOST)]
    if not ends:
        return DeviceTime(0.0, 0.0, 0, 0.0, {})
    since = reached = min(ends)
    busy = gaps = gaps_ns = 0
    by_name: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for span in ordered:
        if span.end_ns <= since:
            continue
        by_name[span.name][0] += 1
        by_name[span.name][1] += span.end_ns - span.start_ns
        gap = max(0, span.start_ns - reached)
        if gap > LONG_GAP_NS:
            gaps, gaps_ns = gaps + 1, gaps_ns + gap
        busy += max(0, span.end_ns - max(span.start_ns, reached))
        reached = max(reached, span.end_ns)
    named = {name: (count, spent / 1e9) for name, (count, spent) in by_name.items()}
    return DeviceTime((reached - since) / 1e9, busy / 1e9, gaps, gaps_ns / 1e9, named)


def traced(work: Callable[[], Result]) -> tuple[Result, DeviceTime]:
    """What some work gives, and what the device did meanwhile."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        result = work()
        torch.cuda.synchronize()
    trace: Any = profiler.profiler
    events = trace.kineto_results.events()
    on_device = [event for event in events if event.device_type() == torch.autograd.DeviceType.CUDA]
    return result, device_time(
        [Span(e.name(), e.start_ns(), e.start_ns() + e.duration_ns()) for e in on_device]
    )
