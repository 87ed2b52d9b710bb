"""`JoinedWrites`: a connection's transport that sends the head of a response with its body.

uvicorn writes them one after the other. Each write is a call of the system, which releases the
interpreter, and the event loop waits to have it back for as long as the thread that runs a model
keeps it.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["JoinedWrites"]

MOST_BYTES = 2**16  # so that the transport says when a client does not read


class JoinedWrites:
    """Used on the event loop only. What it does not change is the transport's own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Sent with what else is written until the loop's next iteration, or until `flush`."""
        if not self._parts:
            asyncio.get_running_loop().call_soon(self.flush)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what was written."""
        parts, self._parts, self._bytes = self._parts, [], 0
        if parts:
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """After what was written."""
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        """After what was written."""
        self.flush()
        self._transport.write_eof()

    def __repr__(self) -> str:
        return f"JoinedWrites(bytes={self._bytes}, {self._transport!r})"
