"""How much of a host's memory and processors there is for this process, as Linux tells it.

A container's limits are not those of the machine: they are in the control groups the process is in,
each of which may have limits of its own (docs.kernel.org, admin-guide/cgroup-v1 and -v2).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["host_memory", "host_processors"]


@dataclass(frozen=True)
class _Version:
    """The files of a version of control groups."""

    limit: str
    used: str
    reclaimable: str
    """In memory.stat: cached files, which the system drops when it must. They count as used."""


_VERSIONS = {
    "": _Version("memory.max", "memory.current", "inactive_file"),
    "memory": _Version(
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
    for name, folder in _groups(root):
        if name in _VERSIONS:
            for limit, left in _limit_of(_VERSIONS[name], folder):
                available, total = min(available, left), min(total, limit)
    return available, total


def host_processors(root: Path = Path("/")) -> int:
    """Processors that this process may use: as many as it may run on, or as its quota is worth."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(os.getpid()))
    for name, folder in _groups(root):
        if name == "":
            quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        elif name == "cpu":
            quota, period = (
                _text(folder / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period")
            )
        else:
            continue
        if quota.isdecimal() and period.isdecimal():  # it is "max" or -1 where there is none
            count = min(count, max(1, int(quota) // max(1, int(period))))
    return count


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """The folders of every group the process is in, and of those around it, by the controller."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        for name in controllers.split(","):
            # A container may see its own group at the top, by the path that the host has for it.
            own = PurePosixPath(path)
            for group in (own, *own.parents):
                yield name, root / "sys/fs/cgroup" / name / str(group).lstrip("/.")


def _limit_of(version: _Version, folder: Path) -> Iterator[tuple[int, int]]:
    """The limit of a group and what is left of it, if it has one."""
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
