"""`Listener`: the server's socket, bound before the models are loaded and listening after.

`uvicorn.Config.bind_socket` would end the process with a log line where an address cannot be bound,
and takes the Unix socket of a server that is running.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from ...errors import InvalidOption
from ..settings import ListenSettings

__all__ = ["Listener"]

_MODE = 0o666  # permissions of a Unix domain socket; its folder can restrict access


class Listener:
    """A bound socket, and its file if it is a Unix domain socket."""

    def __init__(self, sock: socket.socket, *, path: str | None = None) -> None:
        self.socket = sock
        self._path = path
        self._file = None if path is None else _file_at(path)

    @classmethod
    def bind(cls, listen: ListenSettings) -> Self:
        """Not listening yet, so that connections are refused rather than left waiting.

        Raises `InvalidOption` for an address that cannot be bound.
        """
        if listen.uds is not None:
            return cls(_unix_socket(listen.uds), path=listen.uds)
        return cls(_internet_socket(listen.host, listen.port))

    def require_ours(self) -> None:
        """Raises `InvalidOption` where another server has replaced the file.

        While this one loads it does not listen, so its file looks stale.
        """
        if self._path is not None and _file_at(self._path) != self._file:
            raise InvalidOption(
                f"cannot listen on {self._path}: another server took it in the meantime"
            )

    def close(self) -> None:
        """Remove the file, if it is still this socket's."""
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
    with _closed_on_error(sock, f"{host}:{port}"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    return sock


def _unix_socket(path: str) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise _refusal(path, "this system has no Unix domain sockets")
    sock = socket.socket(socket.AF_UNIX)
    with _closed_on_error(sock, path):
        _clear(path)
        sock.bind(path)
        os.chmod(path, _MODE)
    return sock


@contextmanager
def _closed_on_error(sock: socket.socket, address: str) -> Iterator[None]:
    """An `OSError` becomes an `InvalidOption`."""
    try:
        yield
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise _refusal(address, error.strerror or str(error)) from error
        raise


def _clear(path: str) -> None:
    """Remove a stale socket. Raises `InvalidOption` for anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _refusal(path, "the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(0)  # connecting waits while the backlog is full
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            raise _refusal(path, "another server has it, but accepts no connections") from None
    raise _refusal(path, "another server answers there")


def _file_at(path: str) -> tuple[int, int] | None:
    """Device and inode of a file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _refusal(address: str, reason: str) -> InvalidOption:
    return InvalidOption(f"cannot listen on {address}: {reason}")
