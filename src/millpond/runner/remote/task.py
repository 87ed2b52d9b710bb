"""`ChildTask`, what a child is started for, and `RunnerFacts`, what it says once it is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...model.info import RouteInfo
from ...scheduler.batch import BatchShape
from ...scheduler.prefix_cache import PrefixCacheConfig
from ..base import ModelRunner
from ..limits import Limits

__all__ = ["ChildTask", "Loaded", "Rank", "RunnerFacts"]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Which child it is of those that hold one model together."""

    rank: int = 0
    world_size: int = 1
    rendezvous: str | None = None
    """Where the ranks find each other: what `torch.distributed` takes as `init_method`, such as
    `file:///tmp/…` or `tcp://127.0.0.1:1234`."""


@dataclass(frozen=True, kw_only=True)
class ChildTask:
    """What a child loads, and where."""

    loader: str
    """`package.module:function`, called with `arguments` and the `Rank`; it gives a `Loaded`."""
    arguments: tuple[Any, ...] = ()
    rank: Rank = field(default_factory=Rank)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the child has beside the parent's, or instead of them."""
    device_name: str | None = None
    """What the parent calls the device, where the child calls it something else."""
    repeats: bool = False
    """Whether another child loads the same, and logs the same while it does."""

    def load(self) -> Loaded:
        """In the child: do it."""
        module, _, name = self.loader.partition(":")
        load: Callable[..., Loaded] = getattr(importlib.import_module(module), name)
        return load(*self.arguments, rank=self.rank)


@dataclass(frozen=True)
class Loaded:
    """What a loader gives: a runner, and anything that the parent is to know beside it."""

    runner: ModelRunner
    extra: Any = None


@dataclass(frozen=True, kw_only=True)
class RunnerFacts:
    """What does not change of a loaded runner, as its child says it."""

    device_name: str
    dtype_name: str
    limits: Limits
    routes: tuple[RouteInfo, ...]
    shapes: tuple[BatchShape, ...]
    prefix_cache_config: PrefixCacheConfig | None
    extra: Any = None

    @classmethod
    def of(cls, loaded: Loaded, task: ChildTask) -> RunnerFacts:
        runner = loaded.runner
        return cls(
            device_name=task.device_name or runner.device_name,
            dtype_name=runner.dtype_name,
            limits=runner.limits,
            routes=tuple(runner.routes),
            shapes=tuple(runner.shapes),
            prefix_cache_config=runner.prefix_cache_config,
            extra=loaded.extra,
        )


def slots_of(limits: Limits) -> tuple[int, int]:
    """Batches that may be with a runner at a time: any, and queries alone beside those."""
    return limits.workers * limits.depth, limits.query_workers
