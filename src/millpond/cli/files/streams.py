"""Inputs and outputs that can be read or written only once: pipes, terminals, file descriptors.

A name such as `/dev/stdin` is read through its descriptor, as `-` is: opened by name it would start
from the beginning, share its position or fail, depending on the system.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from ..errors import CommandError

__all__ = [
    "ENCODING_HINT",
    "StreamOutput",
    "can_be_read_again",
    "is_same_file",
    "is_stream",
    "name_of",
    "named_error",
    "open_input",
    "open_lines",
    "require_encoding",
    "sync",
]

STDIN, STDOUT, STDERR = range(3)
STANDARD = {"/dev/stdin": STDIN, "/dev/stdout": STDOUT, "/dev/stderr": STDERR}
DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self|(?P<process>\d+)))/fd/(?P<number>\d+)")
MOST_LINKS = 40
ENCODING_HINT = "; name the encoding with --encoding, such as cp1252"


def can_be_read_again(path: Path | None) -> bool:
    """Whether an input is a file that can be read from the start again; None is standard input.

    A missing file counts as one; opening it raises the error.
    """
    if path is None or _descriptor(path) is not None:
        return False
    try:
        mode = path.stat().st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def is_stream(path: Path) -> bool:
    """Whether an output can only be appended to."""
    if str(path) == "-" or _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def is_same_file(path: Path | None, output: Path) -> bool:
    """Whether input and output are the same file, except for a terminal."""
    try:
        read = os.fstat(STDIN) if path is None else path.stat()
        return os.path.samestat(read, output.stat()) and not stat.S_ISCHR(read.st_mode)
    except OSError:  # one does not exist
        return False


def name_of(path: Path | None) -> str:
    """An input's name in messages."""
    return "standard input" if path is None else str(path)


@contextlib.contextmanager
def open_input(path: Path | None) -> Iterator[BinaryIO]:
    """The bytes of a file or stream; None is standard input.

    Raises `CommandError` for a descriptor that is closed, and `OSError`.
    """
    number = STDIN if path is None else _descriptor(path)
    if path is None or number == STDIN:
        if sys.stdin is None:
            raise CommandError("standard input is closed: name a file as IN")
        yield sys.stdin.buffer
        return
    with path.open("rb") if number is None else _opened(number, path, "rb") as file:
        yield file


@contextlib.contextmanager
def open_lines(path: Path | None, encoding: str) -> Iterator[Iterable[bytes]]:
    """The lines of a file or stream in UTF-8, whatever encoding they are in.

    Raises as `open_input`, and `CommandError` for what is not in that encoding; in UTF-8, that is
    for the reader to find.
    """
    with open_input(path) as file:
        if codecs.lookup(encoding).name == "utf-8":
            yield file
            return
        text = io.TextIOWrapper(file, encoding=encoding, newline="\n")
        try:
            yield _encoded(text, name_of(path), encoding)
        finally:
            text.detach()  # the file is closed by who opened it


def _encoded(lines: Iterable[str], name: str, encoding: str) -> Iterator[bytes]:
    number = 0
    try:
        for line in lines:
            yield line.encode("utf-8", "surrogatepass")
            number += 1
    except UnicodeError as error:
        raise CommandError(
            f"{name}, after line {number}: it is not in {encoding} ({error}); name its encoding "
            "with --encoding"
        ) from None


def require_encoding(name: str) -> None:
    """Raises `CommandError` for what is no encoding of texts."""
    try:
        "".encode(name)
    except (LookupError, ValueError):
        raise CommandError(
            f"--encoding {name}: there is none of that name; utf-8, utf-16 and cp1252 are some"
        ) from None


def _descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path, or its link target, names."""
    name = str(path)
    for _ in range(MOST_LINKS):
        if name in STANDARD:
            return STANDARD[name]
        found = DESCRIPTOR.fullmatch(name)
        if found and found["process"] in (None, str(os.getpid())):
            return int(found["number"])
        if not os.path.islink(name):
            return None
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    return None


def _opened(number: int, path: Path, mode: Literal["rb", "wb"]) -> BinaryIO:
    """A file on a duplicate of the descriptor, which stays open when the file is closed."""
    with named_error(path):
        return os.fdopen(os.dup(number), mode)


@contextlib.contextmanager
def named_error(path: Path | str) -> Iterator[None]:
    """Add the file name to an `OSError` of a write."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(file: IO[Any]) -> None:
    """Write what is buffered to disk."""
    file.flush()
    os.fsync(file.fileno())


class StreamOutput:
    """Standard output, a pipe or a device: rows are written and cannot be resumed.

    Raises `BrokenPipeError` when the reader is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        number = STDOUT if str(path) == "-" else _descriptor(path)
        self._is_standard = number == STDOUT
        self.name = "standard output" if str(path) == "-" else str(path)
        self._file = self._standard() if self._is_standard else self._other(number)
        self._rows = 0  # only append changes it

    @staticmethod
    def _standard() -> BinaryIO:
        if sys.stdout is None:
            raise CommandError("standard output is closed: name a file after -o")
        return sys.stdout.buffer

    def _other(self, number: int | None) -> BinaryIO:
        return self._path.open("wb") if number is None else _opened(number, self._path, "wb")

    @property
    def rows(self) -> int:
        """Rows written."""
        return self._rows

    def append(self, chunk: bytes, *, rows: int) -> None:
        """Write a chunk and flush it."""
        with named_error(self.name):
            self._file.write(chunk)
            self._file.flush()
        self._rows += rows

    def close(self) -> None:
        """Close it, which ends the stream for its reader."""
        if not self._is_standard:
            with named_error(self.name):
                self._file.close()

    def discard(self) -> None:
        """Close it without raising."""
        with contextlib.suppress(OSError):
            self.close()

    def __repr__(self) -> str:
        return f"StreamOutput({self.name!r}, rows={self.rows})"
