"""`Port`: one end of what carries batches to a child, or their rows back.

Arrays go through shared memory, one for each direction, and a socket carries a few bytes that say
that they are there. The sender owns the memory that it writes to, and may write again only when
it has been answered. Where arrays are larger than it, the sender makes a larger one and hands it
over with the bytes, so nothing has to be known of sizes beforehand. Several processes may read the
same arrays: then the first answers with arrays, and the others say that they are through with them.

A socket also tells of death: its end comes as soon as the other process is gone.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from .messages import receive_exactly, send_exactly
from .shared_memory import SharedMemory, array_bytes

__all__ = ["Message", "Port", "port_pair"]

Array = npt.NDArray[Any]

_HEAD = struct.Struct("<IQ")


class Message(NamedTuple):
    """What came through a port."""

    kind: int
    number: int
    """Given by the sender; of commands, the order in which they are to be carried out."""
    arrays: list[Array]
    """As they lie in memory that the sender will write to again once it is answered."""


class Port:
    """Sends to the processes at the other ends of some sockets, and receives from the first.

    One thread uses it at a time. Every method raises `ConnectionEnded`.
    """

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        self.connections = tuple(connections)
        self._outgoing: SharedMemory | None = None
        self._incoming: SharedMemory | None = None

    def send(self, kind: int, arrays: Sequence[Array] = (), *, number: int = 0) -> None:
        """Hand arrays of one dimension over, to each process the same."""
        size, descriptors = array_bytes(arrays), []
        if self._outgoing is None or self._outgoing.bytes < size:
            self._outgoing, descriptor = SharedMemory.create(size)
            descriptors = [descriptor]
        try:
            self._outgoing.write(arrays)
            for connection in self.connections:
                send_exactly(connection, _HEAD.pack(kind, number), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def receive(self) -> Message:
        """Wait for what the first process sends."""
        head, descriptors = receive_exactly(self.connections[0], _HEAD.size, 1)
        for descriptor in descriptors:
            self._incoming = SharedMemory(descriptor)
        assert self._incoming is not None
        kind, number = _HEAD.unpack(head)
        return Message(kind, number, self._incoming.read())

    def acknowledge(self, kind: int) -> None:
        """Tell the process at the other end that its arrays are done with, and no more."""
        send_exactly(self.connections[0], _HEAD.pack(kind, 0))

    def acknowledgements(self) -> list[int]:
        """Wait until every process but the first has acknowledged, and with which kind."""
        heads = [receive_exactly(other, _HEAD.size)[0] for other in self.connections[1:]]
        return [_HEAD.unpack(head)[0] for head in heads]

    def end(self) -> None:
        """Wake the threads that wait at either end, from any thread: the connection has ended."""
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended already
                continue

    def close(self) -> None:
        """Close the sockets."""
        for connection in self.connections:
            connection.close()

    def __repr__(self) -> str:
        return f"Port({len(self.connections)}, out={self._outgoing!r}, in={self._incoming!r})"


def port_pair(ranks: int) -> tuple[Port, list[socket.socket]]:
    """A port to N processes, and the socket that each of them gets."""
    pairs = [socket.socketpair() for _ in range(ranks)]
    return Port([own for own, _ in pairs]), [other for _, other in pairs]
