"""How much of a host's memory there is for this process, as Linux tells it.

A container's limit is not in /proc/meminfo: it is in the control groups the process is in, each of
which may have a limit of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["host_memory"]


@dataclass(frozen=True)
class _Version:
    """The files of a version of control groups: where they are mounted, and their names."""

    mount: str
    limit: str
    used: str
    reclaimable: str
    """In memory.stat: cached files, which the system drops when it must. They count as used."""


_VERSIONS = {
    "": _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": _Version(
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}
"""By the name of the controller in /proc/self/cgroup; version 2 has one for everything."""


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Available and total bytes for this process; zeros where the system does not say."""
    known = _numbers(root / "proc/meminfo")
    available, total = (known.get(name, 0) * 1024 for name in ("MemAvailable", "MemTotal"))
    for limit, left in _limits(root):
        available, total = min(available, left), min(total, limit)
    return available, total


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit of every group the process is in, and what is left of it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        for name in controllers.split(","):
            if name in _VERSIONS:
                yield from _limits_of(_VERSIONS[name], root, PurePosixPath(path))


def _limits_of(version: _Version, root: Path, path: PurePosixPath) -> Iterator[tuple[int, int]]:
    # A container may see its own group at the top, under the path that the host knows it by.
    for group in (path, *path.parents):
        folder = root / version.mount / str(group).lstrip("/.")
        limit, used = (_number(folder / name) for name in (version.limit, version.used))
        if limit is not None and used is not None:
            cached = _numbers(folder / "memory.stat").get(version.reclaimable, 0)
            yield limit, max(0, limit - max(0, used - cached))


def _number(file: Path) -> int | None:
    """The number in a file; None if there is none, as where the limit is `max`."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _numbers(file: Path) -> dict[str, int]:
    """Numbers by name, one a line."""
    found = re.findall(r"^(\w+):?\s+(\d+)\b", _text(file), re.MULTILINE)
    return {name: int(number) for name, number in found}


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
