"""A response's head and body leave in one write, and nothing is held back."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from millpond.server.process.joined_writes import MOST_BYTES, JoinedWrites


class Transport:
    """What was called, in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def write(self, data: bytes) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append("close")

    def write_eof(self) -> None:
        self.calls.append("eof")

    def is_closing(self) -> bool:
        return "close" in self.calls


def joined(transport: Transport) -> JoinedWrites:
    return JoinedWrites(cast(asyncio.Transport, transport))


def test_what_is_written_together_is_sent_once() -> None:
    async def run() -> None:
        transport = Transport()
        writes = joined(transport)
        for part in (b"head", b"", b"body"):
            writes.write(part)
        assert transport.calls == []
        assert repr(writes).startswith("JoinedWrites(bytes=8, ")
        writes.flush()
        writes.flush()
        assert transport.calls == [b"headbody"]

    asyncio.run(run())


def test_without_a_flush_it_is_sent_in_the_next_iteration() -> None:
    async def run() -> None:
        transport = Transport()
        writes = joined(transport)
        for part in (b"one", b"two"):
            writes.write(part)
            await asyncio.sleep(0)
        assert transport.calls == [b"one", b"two"]

    asyncio.run(run())


def test_much_is_sent_at_once_so_that_the_transport_can_ask_to_wait() -> None:
    async def run() -> None:
        transport = Transport()
        writes = joined(transport)
        writes.write(b"head")
        writes.write(b"x" * MOST_BYTES)
        assert transport.calls == [b"head" + b"x" * MOST_BYTES]

    asyncio.run(run())


def test_the_end_comes_after_what_was_written() -> None:
    async def run() -> None:
        transport = Transport()
        writes = joined(transport)
        writes.write(b"last")
        writes.write_eof()
        writes.write(b"more")
        assert not writes.is_closing()
        writes.close()
        assert transport.calls == [b"last", "eof", b"more", "close"]
        assert writes.is_closing()

    asyncio.run(run())
