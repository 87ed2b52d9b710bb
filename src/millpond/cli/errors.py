"""`CommandError`: what a command refuses to do, or cannot go on with."""

from __future__ import annotations

from ..errors import MillpondError

__all__ = ["CommandError"]


class CommandError(MillpondError):
    """The message is the line that the user reads."""
