"""Messages of a parent and its child over a socket, with descriptors: few, small, and pickled.

Arrays never go this way: see `channel`.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any

__all__ = ["ConnectionEnded", "receive_exactly", "receive_message", "send_exactly", "send_message"]

_HEAD = struct.Struct("<Q")
MOST_DESCRIPTORS = 250  # Linux lets 253 through at a time


class ConnectionEnded(Exception):
    """The other process has closed its end, or is gone."""


def send_message(connection: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    """Raises `ConnectionEnded`."""
    data = pickle.dumps(message)
    send_exactly(connection, _HEAD.pack(len(data)), descriptors)
    send_exactly(connection, data)


def send_exactly(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """These bytes, which are few where descriptors go with them. Raises `ConnectionEnded`."""
    try:
        if descriptors:
            socket.send_fds(connection, [data], list(descriptors))
        else:
            connection.sendall(data)
    except OSError as error:
        raise ConnectionEnded from error


def receive_message(connection: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors, waited for. Raises `ConnectionEnded`."""
    head, descriptors = receive_exactly(connection, _HEAD.size, MOST_DESCRIPTORS)
    data, _ = receive_exactly(connection, *_HEAD.unpack(head))
    return pickle.loads(data), descriptors


def receive_exactly(
    connection: socket.socket, count: int, most_descriptors: int = 0
) -> tuple[bytes, list[int]]:
    """`count` bytes, and descriptors that came with them. Raises `ConnectionEnded`."""
    parts: list[bytes] = []
    descriptors: list[int] = []
    try:
        while count:
            if most_descriptors:
                part, found, flags, _ = socket.recv_fds(connection, count, most_descriptors)
                descriptors += found
                for descriptor in found:
                    os.set_inheritable(descriptor, False)
                if flags & socket.MSG_CTRUNC:  # this process may open no more files
                    raise ConnectionEnded
            else:
                part = connection.recv(count)
            if not part:
                raise ConnectionEnded
            parts.append(part)
            count -= len(part)
    except (OSError, ConnectionEnded) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ConnectionEnded from error
    return b"".join(parts), descriptors
