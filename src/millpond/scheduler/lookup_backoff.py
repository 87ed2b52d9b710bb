"""`LookupBackoff`: how seldom texts are looked up in a prefix cache that has none of them."""

from __future__ import annotations

__all__ = ["LookupBackoff"]

MOST_DOUBLINGS = 6  # of the batches between two that look texts up without a hit: 31 at most


class LookupBackoff:
    """Texts with nothing in common are looked up for nothing, which takes its time.

    The longer it was without a batch that saves enough, the more batches do without.
    """

    def __init__(self) -> None:
        self._misses_in_a_row = 0
        self._batches_to_skip = 0  # before texts without a prompt are looked up again

    def may_skip(self) -> bool:
        """Whether looking texts up may be left out of the next batch."""
        if not self._batches_to_skip:
            return False
        self._batches_to_skip -= 1
        return True

    def note(self, pays: bool) -> None:
        """A batch looked its texts up; whether that saved enough tokens."""
        self._misses_in_a_row = 0 if pays else self._misses_in_a_row + 1
        self._batches_to_skip = max(0, 2 ** min(self._misses_in_a_row, MOST_DOUBLINGS) // 2 - 1)

    def __repr__(self) -> str:
        return (
            f"LookupBackoff(misses_in_a_row={self._misses_in_a_row}, "
            f"batches_to_skip={self._batches_to_skip})"
        )
