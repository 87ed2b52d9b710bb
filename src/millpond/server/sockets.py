"""`Listener`: the socket of a server, bound before minutes of loading and listening after them."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from types import TracebackType
from typing import Self

from ..errors import InvalidOption
from .settings import ListenSettings

__all__ = ["Listener"]

_EVERYBODY = 0o666  # who may connect to a Unix domain socket; its folder can keep others out


class Listener:
    """A bound socket, and the file that it made if it is a Unix domain socket."""

    def __init__(self, sock: socket.socket, *, path: str | None = None) -> None:
        self.socket = sock
        self._path = path
        self._file = None if path is None else _file_at(path)

    @classmethod
    def bind(cls, listen: ListenSettings) -> Self:
        """Not listening yet, so that nobody is kept waiting.

        Raises `InvalidOption` for an address that cannot be had.
        """
        if listen.uds is not None:
            return cls(_unix_socket(listen.uds), path=listen.uds)
        return cls(_internet_socket(listen.host, listen.port))

    def require_ours(self) -> None:
        """Raises `InvalidOption` where another server has taken the path.

        While this one loads it does not listen, so its file looks like one that was left behind.
        """
        if self._path is not None and _file_at(self._path) != self._file:
            raise InvalidOption(f"cannot listen on {self._path}: another server took it meanwhile")

    def close(self) -> None:
        """Take the file away, if it is still this socket's."""
        self.socket.close()
        if self._path is not None and _file_at(self._path) == self._file:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Listener(at={self._path or self.socket.getsockname()!r})"


def _internet_socket(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise _refusal(f"{host}:{port}", error.strerror or str(error)) from error
    return sock


def _unix_socket(path: str) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise _refusal(path, "this system has no Unix domain sockets")
    sock = socket.socket(socket.AF_UNIX)
    try:
        _clear(path)
        sock.bind(path)
        os.chmod(path, _EVERYBODY)
    except OSError as error:
        sock.close()
        raise _refusal(path, error.strerror or str(error)) from error
    except InvalidOption:
        sock.close()
        raise
    return sock


def _clear(path: str) -> None:
    """Remove a socket that a server left behind; anything else is not ours to remove."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _refusal(path, "it is there already and is no socket")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(0)  # or it would wait for as long as nobody accepts
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            raise _refusal(path, "another server has it, which accepts no connections") from None
    raise _refusal(path, "another server answers there")


def _file_at(path: str) -> tuple[int, int] | None:
    """What tells a file from another that was put in its place."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _refusal(address: str, reason: str) -> InvalidOption:
    return InvalidOption(f"cannot listen on {address}: {reason}")
