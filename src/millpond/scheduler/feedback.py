"""What batches that ran say of the next: how fast bulk is, and whether looking prefixes up pays."""

from __future__ import annotations

__all__ = ["BulkSpeed", "LookupBackoff"]

FIRST_SHORT_BATCH_TOKENS = 256  # before any speed is known
SPEED_MEMORY = 0.8  # what is left of the batches measured so far with every new one
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


class BulkSpeed:
    """Tokens a second of batches with bulk, the last ones most, and what is short at that."""

    def __init__(self, fewest_tokens: int) -> None:
        self._fewest_tokens = fewest_tokens  # of a short batch, once a speed is known
        # Summed before they are divided: of two batches in flight at a time, the second
        # may seem to take no time, because the first was seen to be through too late.
        self._tokens = self._seconds = 0.0

    def record(self, tokens: int, seconds: float) -> None:
        """A batch ran that long, above 0."""
        self._tokens = SPEED_MEMORY * self._tokens + tokens
        self._seconds = SPEED_MEMORY * self._seconds + seconds

    def tokens_in(self, seconds: float) -> int:
        """What runs in that time; a guess while no speed is known."""
        if not self._seconds:
            return FIRST_SHORT_BATCH_TOKENS
        return max(self._fewest_tokens, int(self._tokens / self._seconds * seconds))

    def __repr__(self) -> str:
        return f"BulkSpeed(tokens={self._tokens:.0f}, seconds={self._seconds:.3f})"
