"""`RememberingRunner`, a fake device whose slots know what they were filled with.

Every slot holds the whole beginning of a text up to its token, not the token alone, so a text that
goes on from anything but its own beginning is found out, in the batch where it happens. So is a
slot that one batch writes while another one may still read it.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from fakes import DIMENSION, FakeRunner, FakeTicket

from millpond.runner.input_batch import PrefixInputBatch
from millpond.scheduler.batch import Batch
from millpond.scheduler.prefix_cache import PrefixCacheConfig

__all__ = ["RememberingRunner", "SlotMemory", "SlotUse"]

GARBAGE = np.float32(7.5)  # in place of the vector of a text that is not finished
SPOILT = b"not a beginning"


@dataclass(eq=False)
class SlotUse:
    """The slots of a batch that is under way."""

    read: set[int]
    written: set[int]
    unfinished: list[int]
    """Places in the batch of texts that it does not bring to their end."""


class SlotMemory:
    """What the slots of a device hold: ids of a text, from its beginning to the slot's token."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.computed: Counter[bytes] = Counter()  # tokens, by text
        self.passes: Counter[bytes] = Counter()  # batches, by text
        self._content: dict[int, bytes] = {}
        self._under_way: list[SlotUse] = []
        self._lock = threading.Lock()

    def launch(self, batch: Batch) -> SlotUse:
        """Compute a batch that uses prefixes: write first, then read and compare."""
        layout = PrefixInputBatch.of(batch, self.block_tokens)
        texts = [ids for ids, _ in texts_and_ends(batch)]
        ends = [end for _, end in texts_and_ends(batch)]
        with self._lock:
            use = SlotUse(
                set(layout.read.tolist()),
                set(layout.written.tolist()),
                [place for place, ids in enumerate(texts) if ends[place] < len(ids)],
            )
            self._check_apart(use)
            self._check_rows(layout, texts, ends)
            self._write(layout, texts)
            self._read(layout, texts)
            self._under_way.append(use)
        return use

    def _check_apart(self, use: SlotUse) -> None:
        for other in self._under_way:
            assert not use.written & (other.read | other.written), "written while it is in use"
            assert not use.read & other.written, "read before it is known to be good"

    def _check_rows(
        self, layout: PrefixInputBatch, texts: list[npt.NDArray[np.int32]], ends: list[int]
    ) -> None:
        """The row has every token that nobody computed, once and at its position."""
        assert sorted(layout.order.tolist()) == list(range(len(texts)))
        shapes = list(zip((-layout.lengths).tolist(), (-layout.prefixes).tolist(), strict=True))
        assert shapes == sorted(shapes), "neighbours are alike"
        start = 0
        for place, length, prefix in zip(
            layout.order.tolist(), layout.lengths.tolist(), layout.prefixes.tolist(), strict=True
        ):
            ids = texts[place]
            assert length > 0
            assert prefix + length == ends[place]
            row = slice(start, start + length)
            assert layout.ids[row].tolist() == ids[prefix : prefix + length].tolist()
            assert layout.positions[row].tolist() == list(range(prefix, prefix + length))
            self.computed[ids.tobytes()] += length
            self.passes[ids.tobytes()] += 1
            start += length
        assert start == len(layout.ids) == len(layout.positions)

    def _write(self, layout: PrefixInputBatch, texts: list[npt.NDArray[np.int32]]) -> None:
        assert len(set(layout.written.tolist())) == len(layout.written), "two tokens in a slot"
        owners = np.repeat(layout.order, layout.lengths)
        for row, slot in zip(layout.rows.tolist(), layout.written.tolist(), strict=True):
            ids = texts[owners[row]]
            self._content[slot] = ids[: layout.positions[row] + 1].tobytes()

    def _read(self, layout: PrefixInputBatch, texts: list[npt.NDArray[np.int32]]) -> None:
        assert len(layout.read) == layout.prefixes.sum()
        slots = iter(layout.read.tolist())
        for place, prefix in zip(layout.order.tolist(), layout.prefixes.tolist(), strict=True):
            for count in range(1, prefix + 1):
                beginning = texts[place][:count].tobytes()
                assert self._content[next(slots)] == beginning, "not its own beginning"

    def spoil(self, use: SlotUse) -> None:
        """What the batch wrote is good for nothing."""
        with self._lock:
            self._content |= dict.fromkeys(use.written, SPOILT)

    def done(self, use: SlotUse) -> None:
        """The batch is home."""
        with self._lock:
            self._under_way.remove(use)


def texts_and_ends(batch: Batch) -> list[tuple[npt.NDArray[np.int32], int]]:
    """The ids of each text, whole, and the token before which the batch stops."""
    found = []
    for segment in batch.segments:
        for place in range(segment.start, segment.stop):
            ids = segment.chunk.ids_of(place)
            found.append((ids, len(ids) if segment.until is None else segment.until))
    return found


@dataclass
class RememberingTicket(FakeTicket):
    use: SlotUse | None = None


@dataclass
class RememberingRunner(FakeRunner):
    """A `FakeRunner` with `blocks` blocks of `block_tokens` tokens for prefixes."""

    blocks: int = 16
    block_tokens: int = 4
    min_saved_tokens: int = 0
    mistakes: list[BaseException] = field(default_factory=list)
    """What a batch got wrong. The engine takes it for a text that the model does not like."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory = SlotMemory(self.block_tokens)
        self.prefix_cache_config = PrefixCacheConfig(
            blocks=self.blocks,
            block_tokens=self.block_tokens,
            min_saved_tokens=self.min_saved_tokens,
        )

    def launch(self, batch: Batch) -> FakeTicket:
        if not batch.uses_prefixes:
            return super().launch(batch)
        try:
            use = self.memory.launch(batch)
        except BaseException as mistake:
            self.mistakes.append(mistake)
            raise
        try:
            handle = super().launch(batch)
        except Exception:
            self.memory.spoil(use)
            self.memory.done(use)
            raise
        return RememberingTicket(handle.padded_tokens, handle.batch, handle.tokens, use)

    def collect(self, handle: Any) -> npt.NDArray[np.float32]:
        use = getattr(handle, "use", None)
        if use is None:
            return super().collect(handle)
        try:
            vectors = super().collect(handle)
            if not np.isfinite(vectors).all():
                self.memory.spoil(use)
        except BaseException:
            self.memory.spoil(use)
            raise
        finally:
            self.memory.done(use)
        for place in use.unfinished:
            if np.isfinite(vectors[place]).all():
                vectors[place] = np.full(DIMENSION, GARBAGE)
        return vectors
