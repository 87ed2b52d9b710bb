"""Port 8000 here is `DOCUMENTATION_PORT`: for the reader and the servers that it starts."""

from __future__ import annotations

import os
import socket
from typing import Any

SHOWN = 8000
_connect, _bind = socket.socket.connect, socket.socket.bind


def _moved(address: Any) -> Any:
    if isinstance(address, tuple) and address[1] == SHOWN:
        return (address[0], int(os.environ["DOCUMENTATION_PORT"]), *address[2:])
    return address


def _connect_there(self: socket.socket, address: Any) -> None:
    _connect(self, _moved(address))


def _bind_there(self: socket.socket, address: Any) -> None:
    _bind(self, _moved(address))


if "DOCUMENTATION_PORT" in os.environ:
    socket.socket.connect = _connect_there  # type: ignore[method-assign]
    socket.socket.bind = _bind_there  # type: ignore[method-assign]
