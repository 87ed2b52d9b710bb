"""`BlockPool`: which blocks of a fixed number are in use, and which free one is taken next.

A free block may keep its content, to be found again until the block is needed. The pool counts
references and orders the free blocks; what a block contains it does not know.

    first in line ─▶ blank: nothing in it to find │ kept: least recently used … most recently used

Every method is called under the engine's lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

__all__ = ["BlockPool"]


class BlockPool:
    """The blocks 0 to `size - 1`.

    `evicted` is called with a block whose content was kept and that is now given to another text.
    """

    def __init__(self, size: int, *, evicted: Callable[[int], None] = lambda block: None) -> None:
        assert size >= 0
        self.size = size
        self._evicted = evicted
        self._references = [0] * size
        self._free = list(range(size - 1, -1, -1))  # taken from the end
        self._evictable: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def free(self) -> int:
        return len(self._free) + len(self._evictable)

    @property
    def in_use(self) -> int:
        return self.size - self.free

    @property
    def kept(self) -> int:
        """Free blocks whose content may be found again."""
        return len(self._evictable)

    def references(self, block: int) -> int:
        """How many hold the block; 0 if it is free."""
        return self._references[block]

    def is_cached(self, block: int) -> bool:
        """Whether the block is free and its content may be found again."""
        return block in self._evictable

    def allocate(self) -> int | None:
        """A block with one reference, or None when every block is in use."""
        if self._free:
            block = self._free.pop()
        elif self._evictable:
            block, _ = self._evictable.popitem(last=False)
            self._evicted(block)
        else:
            return None
        self._references[block] = 1
        return block

    def acquire(self, block: int) -> None:
        """One more reference to a block that is in use or kept."""
        count = self._references[block]
        if count == 0:
            del self._evictable[block]
        self._references[block] = count + 1

    def release(self, block: int, *, keep: bool) -> None:
        """One reference less. With the last one the block is free: kept, or first in line."""
        count = self._references[block] - 1
        assert count >= 0
        self._references[block] = count
        if count == 0:
            if keep:
                self._evictable[block] = None
            else:
                self._free.append(block)

    def forget(self, block: int) -> None:
        """The block's content will not be asked for. If it is free, it is now first in line."""
        if block in self._evictable:
            del self._evictable[block]
            self._free.append(block)

    def check(self) -> None:
        """Assert that every block is either in use or free, and free once."""
        order = [*self._free, *self._evictable]
        free = {block for block, count in enumerate(self._references) if count == 0}
        assert min(self._references, default=0) >= 0
        assert len(order) == len(free)
        assert set(order) == free
        assert self.free + self.in_use == self.size

    def __repr__(self) -> str:
        return (
            f"BlockPool(size={self.size}, in_use={self.in_use}, free={self.free}, kept={self.kept})"
        )
