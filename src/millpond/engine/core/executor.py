"""`BatchExecutor`: runs planned batches on a model runner, on the thread of one worker.

A batch that fails is split until its good texts have vectors and the bad one is alone. It plans
nothing, holds no lock while a batch runs, and knows no calls: what came of a batch is a
`BatchResult`.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...outputs import RaggedRows, Rows
from ...runner.base import ModelRunner
from ...scheduler.batch import Batch, Segment

__all__ = ["BatchExecutor", "BatchResult", "DeviceSlot", "ForwardPass", "Place"]


@dataclass(frozen=True, slots=True, eq=False)
class ForwardPass:
    """A batch, or a part of one that failed, and what came of it: vectors, or an error."""

    batch: Batch
    launched_s: float
    forward_s: float = 0.0
    """From its launch, or the end of the one before it on the device, until its vectors came."""
    padded_tokens: int = 0
    vectors: Rows | None = None
    """float32 `[texts, dimension]`, or ragged, in the order of the segments."""
    error: Exception | None = None
    """Why none of its texts can have a vector."""
    out_of_memory: bool = False


@dataclass(slots=True, eq=False)
class BatchResult:
    """What came of a batch."""

    batch: Batch
    passes: list[ForwardPass] = field(default_factory=list)
    """One, or more if the batch failed and was split."""
    dropped: list[Segment] = field(default_factory=list)
    """Texts that were not run again, because their call has ended."""
    was_split: bool = False
    """Whether the batch failed as a whole."""
    was_too_large: bool = False
    """Whether it did not fit in memory, and smaller batches could."""
    was_moved: bool = False
    """Whether its runner was lost, and another one ran it again."""


class DeviceSlot:
    """What the workers share that keep one device busy: their batches run one after another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._in_flight = 0
        self._is_exclusive = False
        self.last_done_s = 0.0

    def enter(self) -> bool:
        """A batch is about to be launched; whether no other is in flight."""
        with self._changed:
            while self._is_exclusive:
                self._changed.wait()
            self._in_flight += 1
            return self._in_flight == 1

    def leave(self) -> None:
        """A batch is no longer in flight."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def __enter__(self) -> None:
        """Wait until nothing is in flight, and keep others from launching."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_exclusive)
            self._is_exclusive = True
            self._changed.wait_for(lambda: not self._in_flight)

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._is_exclusive = False
            self._changed.notify_all()

    def __repr__(self) -> str:
        return f"DeviceSlot(in_flight={self._in_flight}, exclusive={self._is_exclusive})"


Place = tuple[ModelRunner, DeviceSlot]
"""Where a batch may run."""
Replace = Callable[[ModelRunner, Exception], Place | None]
"""Given a runner that is lost, and its error: another one, or None where there is none left."""


class BatchExecutor:
    """Runs batches on a runner, one at a time. Used by one thread only."""

    def __init__(
        self, runner: ModelRunner, slot: DeviceSlot, *, clock: Callable[[], float]
    ) -> None:
        self.runner = runner
        self._slot = slot
        self._clock = clock
        self._replace: Replace | None = None

    def run(self, batch: Batch, replace: Replace | None = None) -> BatchResult:
        """Run a batch, on another runner where its own is lost and `replace` has one.

        Raises only what no batch can survive.
        """
        self._replace = replace
        result = BatchResult(batch)
        try:
            self._run(batch, result)
        finally:
            self._replace = None  # it may lead back here
        return result

    def _run(self, batch: Batch, result: BatchResult, *, is_retry: bool = False) -> None:
        is_alone = is_retry or self._slot.enter()
        launched_s = self._clock()
        try:
            handle = self.runner.launch(batch)
            vectors = self.runner.collect(handle)
        except Exception as error:
            failure = error
        else:
            result.passes.append(self._pass(batch, launched_s, handle.padded_tokens, vectors))
            return
        finally:
            if not is_retry:
                self._slot.leave()
        self._recover(batch, failure, result, launched_s=launched_s, is_alone=is_alone)

    def _pass(
        self, batch: Batch, launched_s: float, padded_tokens: int, vectors: Rows
    ) -> ForwardPass:
        done_s = self._clock()
        forward_s = done_s - max(launched_s, self._slot.last_done_s)
        self._slot.last_done_s = done_s
        if (error := self._wrong_shape(batch, vectors)) is not None:
            return ForwardPass(batch, launched_s, error=error)
        return ForwardPass(batch, launched_s, forward_s, padded_tokens, vectors)

    def _wrong_shape(self, batch: Batch, vectors: Any) -> Exception | None:
        """What is wrong with what the runner gave: whose each row is cannot be known then."""
        expected = (batch.texts, self.runner.routes[batch.route].row_width)
        if isinstance(vectors, RaggedRows) and (len(vectors), vectors.width) == expected:
            return None
        is_numbers = isinstance(vectors, np.ndarray) and vectors.dtype.kind == "f"
        if is_numbers and vectors.shape == expected:
            return None
        shape = getattr(vectors, "shape", type(vectors).__name__)
        return TypeError(f"the runner gave {shape} for a batch whose vectors are {expected}")

    def _recover(
        self,
        failed: Batch,
        error: Exception,
        result: BatchResult,
        *,
        launched_s: float,
        is_alone: bool,
    ) -> None:
        """Split a failed batch until its good texts have vectors and its bad one is alone."""
        if self.runner.is_fatal(error):
            self._move(failed, error, result, launched_s=launched_s)
            return
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed pass
        out_of_memory = self.runner.is_out_of_memory(error)
        is_part, result.was_split = result.was_split, True
        if out_of_memory and not is_part:
            result.was_too_large = _is_divisible(failed)
        batch = failed.uncached()
        if batch.texts > 1:
            if out_of_memory:
                with self._slot:
                    self.runner.free_memory()
            for half in batch.halves():
                alive = half.alive()
                result.dropped += half.left_out(alive)
                if alive.segments:
                    self._run(alive, result)
        elif failed.uses_prefixes or (out_of_memory and not is_alone):
            # The prefixes were too much, perhaps, or the other batches on the device.
            with self._slot:
                if out_of_memory:
                    self.runner.free_memory()
                self._run(batch, result, is_retry=True)
        else:
            result.passes.append(
                ForwardPass(batch, launched_s, error=error, out_of_memory=out_of_memory)
            )

    def _move(
        self, failed: Batch, error: Exception, result: BatchResult, *, launched_s: float
    ) -> None:
        """The runner is lost: run what was on it on another, but for what was moved before.

        A text that ends every process it comes to is not to end all of them.
        """
        place = None if self._replace is None else self._replace(self.runner, error)
        if place is None:
            raise error
        self.runner, self._slot = place
        was_moved, result.was_split, result.was_moved = result.was_moved, True, True
        batch = failed.uncached()
        if was_moved:
            result.passes.append(ForwardPass(batch, launched_s, error=error))
            return
        alive = batch.alive()
        result.dropped += batch.left_out(alive)
        if alive.segments:
            self._run(alive, result)

    def __repr__(self) -> str:
        return f"BatchExecutor({self.runner!r}, {self._slot!r})"


def _is_divisible(batch: Batch) -> bool:
    """Whether batches that take less memory could do the same."""
    return batch.texts > 1 or any(segment.is_unfinished for segment in batch.segments)
