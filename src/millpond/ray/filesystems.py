"""Folders of files wherever they are: local paths, `s3://`, `gs://`, `hdfs://`, `abfs://`.

Arrow's own filesystems come first; a scheme that Arrow does not know is left to fsspec.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import fs

from ..errors import MillpondError

__all__ = ["File", "Folder", "NoFiles", "matching"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:/ is none
_WILD = re.compile(r"[*\[]")
_SUFFIXES = (".parquet", ".pq")


class NoFiles(MillpondError):
    """A folder or a pattern that cannot be read, or matches nothing."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A file below a folder."""

    name: str
    """Its path below the folder, with slashes."""
    size: int
    modified_ns: int
    """0 where the filesystem does not say."""


@dataclass(frozen=True)
class Folder:
    """A folder by its URI or its absolute path, which is what travels to other machines."""

    uri: str

    @classmethod
    def of(cls, name: str) -> Folder:
        """A relative path is one below the working directory."""
        return cls(name.rstrip("/") if _SCHEME.match(name) else os.path.abspath(name))

    @property
    def system(self) -> Any:
        """The filesystem. Raises `NoFiles` where none can be had for the scheme."""
        return _resolved(self.uri)[0]

    def path(self, name: str = "") -> str:
        """The path of a file below it, as its filesystem takes it."""
        root = _resolved(self.uri)[1]
        return f"{root.rstrip('/')}/{name}" if name else root

    def files(self, *, recursive: bool = True) -> list[File]:
        """The files below it, none where there is no such folder. Raises `OSError`."""
        selector = fs.FileSelector(self.path(), recursive=recursive, allow_not_found=True)
        root = self.path().rstrip("/") + "/"
        return [
            File(
                name=info.path.removeprefix(root),
                size=info.size or 0,
                modified_ns=info.mtime_ns or 0,
            )
            for info in self.system.get_file_info(selector)
            if info.type == fs.FileType.File
        ]

    def contains(self, other: Folder) -> bool:
        """Whether the other is this one, or lies below it."""
        own, its = _resolved(self.uri)[1].rstrip("/"), _resolved(other.uri)[1].rstrip("/")
        same_kind = self.system.type_name == other.system.type_name
        return same_kind and f"{its}/".startswith(f"{own}/")


def matching(name: str) -> tuple[Folder, list[File]]:
    """The Parquet files that a folder, a file or a pattern names, and the folder they are below.

    `*` is anything but a slash, and `**` any folders. Files and folders that begin with a dot or an
    underscore are left out, as Spark and Arrow do, unless the pattern says so. Raises `NoFiles`.
    """
    name, mark, query = name.partition("?") if _SCHEME.match(name) else (name, "", "")
    root, pattern = _split(name)
    folder = Folder.of(root + mark + query)
    if not pattern:
        return _named(folder, name)
    deep = len(pattern) > 1 or "**" in pattern
    found = [each for each in folder.files(recursive=deep) if _fits(each.name.split("/"), pattern)]
    if not found:
        raise NoFiles(f"{name} matches no file")
    return folder, found


def _named(folder: Folder, name: str) -> tuple[Folder, list[File]]:
    info = folder.system.get_file_info(folder.path())
    if info.type == fs.FileType.File:
        above, _, last = folder.uri.rpartition("/")
        file = File(name=last, size=info.size or 0, modified_ns=info.mtime_ns or 0)
        return Folder(above or "/"), [file]
    if info.type == fs.FileType.NotFound:
        raise NoFiles(f"{name}: there is no such file or folder")
    found = [
        each
        for each in folder.files()
        if each.name.lower().endswith(_SUFFIXES)
        and not any(part.startswith((".", "_")) for part in each.name.split("/"))
    ]
    if not found:
        raise NoFiles(f"{name} has no Parquet files")
    return folder, found


def _split(name: str) -> tuple[str, list[str]]:
    """What stands before the first part with a wildcard, and the parts from there."""
    scheme = found.group() if (found := _SCHEME.match(name)) else ""
    parts = name.removeprefix(scheme).split("/")
    first = next((at for at, part in enumerate(parts) if _WILD.search(part)), len(parts))
    return scheme + "/".join(parts[:first]) or ("/" if name.startswith("/") else "."), parts[first:]


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[skip:], pattern[1:]) for skip in _visible(parts))
    if not parts or (parts[0].startswith((".", "_")) and parts[0][0] != pattern[0][0]):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _visible(parts: Sequence[str]) -> Iterator[int]:
    """How many folders `**` may stand for."""
    for count in range(len(parts) + 1):
        if any(part.startswith((".", "_")) for part in parts[:count]):
            return
        yield count


@cache
def _resolved(uri: str) -> tuple[Any, str]:
    """The filesystem, and the path in it."""
    if not _SCHEME.match(uri):
        return fs.LocalFileSystem(), uri
    try:
        system, path = fs.FileSystem.from_uri(uri)
        return system, path
    except pa.ArrowInvalid as unknown:
        try:
            other, path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise NoFiles(f"{uri}: no filesystem can be had for it: {error}") from unknown
        return fs.PyFileSystem(fs.FSSpecHandler(other)), path
