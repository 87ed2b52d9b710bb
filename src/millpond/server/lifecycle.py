"""`Lifecycle`: whether the server still takes requests."""

from __future__ import annotations

from .errors import ApiError

__all__ = ["Lifecycle"]


class Lifecycle:
    """Taking requests, or draining. Written by the process's signal handler alone."""

    def __init__(self) -> None:
        self.draining = False

    def require_open(self) -> None:
        """Raises `ApiError` 503 once the server has been told to stop."""
        if self.draining:
            raise ApiError(
                503,
                "the server is shutting down; send the request to another",
                code="draining",
                headers={"connection": "close"},
            )

    def __repr__(self) -> str:
        return f"Lifecycle(draining={self.draining})"
