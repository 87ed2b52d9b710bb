"""`CommandError`: an error of a command."""

from __future__ import annotations

from ..errors import MillpondError

__all__ = ["CommandError"]


class CommandError(MillpondError):
    """Its message is printed as one line."""
