"""What the engine tells about its work: `BatchStats`, one per forward pass, and `EngineStats`.

Metrics systems are adapters of `StatsHook`; the engine knows none of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from .errors import InvalidOption
from .locks import fork_safe

__all__ = [
    "BatchStats",
    "CallProgress",
    "EngineStats",
    "PrefixCacheStats",
    "ProgressHook",
    "StatsHook",
    "StatsHooks",
    "is_callers_interrupt",
]

logger = logging.getLogger("millpond")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchStats:
    """One forward pass."""

    interactive_texts: int
    bulk_texts: int
    tokens: int
    """Real tokens of the texts, and those computed of a text that takes several batches."""
    padded_tokens: int
    """Tokens computed beside them and thrown away."""
    queue_s: float
    """Longest time a text of the batch waited between being ready and its forward pass, seconds."""
    tokenize_s: float
    """Time spent tokenising the texts of the batch, seconds."""
    forward_s: float
    """From the launch of the forward pass until its vectors were on the host, seconds."""
    failed_texts: int = 0
    deduplicated_texts: int = 0
    """Texts that were not computed, since an identical one was in the batch."""
    cached_tokens: int = 0
    """Tokens that were not computed, since their prefix was in the cache."""

    @property
    def texts(self) -> int:
        return self.interactive_texts + self.bulk_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixCacheStats:
    """Totals since the cache was made, and what its blocks hold now; of all replicas together."""

    looked_up_tokens: int
    """Tokens of all texts that were claimed."""
    hit_tokens: int
    """Tokens among them that need not be computed."""
    evictions: int
    """Blocks with remembered content that were given to other texts."""
    block_tokens: int
    blocks: int
    blocks_in_use: int
    """Those of pinned prompts included."""
    blocks_pinned: int
    blocks_cached: int
    """Free, and remembered until they are needed."""

    @classmethod
    def sum_of(cls, caches: Sequence[PrefixCacheStats]) -> PrefixCacheStats | None:
        """Those of all replicas together; None of none."""
        if not caches:
            return None
        names = [each.name for each in fields(cls) if each.name != "block_tokens"]
        sums = {name: sum(getattr(cache, name) for cache in caches) for name in names}
        return cls(block_tokens=caches[0].block_tokens, **sums)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Totals since the engine was made, and what is waiting now."""

    batches: int
    texts: int
    """Texts that got a vector."""
    deduplicated_texts: int
    """Texts among them that got the vector of an identical one in flight."""
    tokens: int
    cached_tokens: int
    """Tokens among them that came out of the prefix cache."""
    padded_tokens: int
    truncated_texts: int
    failed_texts: int
    cancelled_texts: int
    """Texts whose call was cancelled or whose deadline passed before they ran."""
    waiting_interactive_tokens: int
    waiting_bulk_tokens: int
    """Tokens accepted and not yet run; estimated from characters until a text is tokenised."""
    forward_s: float
    replicas: int = 1
    """Copies of the model that run batches; fewer than `info().replicas` where one is lost."""
    prefix_cache: PrefixCacheStats | None = None
    """None where the model has no prefix cache."""

    @property
    def padding_waste(self) -> float:
        """The share of computed tokens that were padding, between 0 and 1."""
        computed = self.tokens - self.cached_tokens + self.padded_tokens
        return self.padded_tokens / computed if computed else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CallProgress:
    """How far a batch has brought one call."""

    texts: int
    """Texts of the call that have their vector, or their error, by this batch."""
    truncated: int
    """Texts among them that were longer than the model reads and lost a part."""
    share: float
    """Of the call's work, by the lengths of its texts; all of a call's together are 1."""


class ProgressHook(Protocol):
    """Called as texts of a call end, once or more a batch, on the thread that ran it.

    Several threads may call it at a time, and it must be quick. What it raises is passed over.
    """

    def __call__(self, progress: CallProgress, /) -> object: ...


class StatsHook(Protocol):
    """Called after every batch, on the thread that ran it; it must be quick and not raise."""

    def __call__(self, batch: BatchStats, /) -> None: ...


class StatsHooks:
    """Any thread may add, remove and call hooks; one that raises stops no other."""

    def __init__(self) -> None:
        self.registered: tuple[StatsHook, ...] = ()
        self._lock = fork_safe(threading.RLock())

    def add(self, hook: StatsHook) -> None:
        """Call `hook` after every batch from now on. Raises `InvalidOption`."""
        if not callable(hook):
            raise InvalidOption(f"hook={hook!r}: it must be a function of a BatchStats")
        with self._lock:
            self.registered = (*self.registered, hook)

    def remove(self, hook: StatsHook) -> None:
        """Call it no more. Nothing happens if it was not there."""
        with self._lock:
            self.registered = tuple(known for known in self.registered if known is not hook)

    def call(self, stats: BatchStats) -> None:
        """Call them all, on this thread and with no lock held, so several threads may be at it."""
        for hook in self.registered:
            try:
                hook(stats)
            except BaseException as error:
                if is_callers_interrupt(error):
                    raise
                logger.exception("a stats hook raised; the engine goes on")

    def __repr__(self) -> str:
        return f"StatsHooks({len(self.registered)})"


def is_callers_interrupt(error: BaseException) -> bool:
    """Whether what a hook raised is Ctrl-C, during a query that its caller runs."""
    here = threading.current_thread()
    return isinstance(error, KeyboardInterrupt) and here is threading.main_thread()
