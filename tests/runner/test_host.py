"""A host's memory and processors, with the files of Linux made up for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from millpond.runner.host import host_memory, host_processors

GIB = 1 << 30
MEMINFO = f"MemTotal: {64 * GIB >> 10} kB\nMemFree: 5 kB\nMemAvailable: {48 * GIB >> 10} kB\n"


def host(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(path: str, limit: int | str, used: int, cached: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup{path}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cached}\nactive_file 7\n",
    }


def test_without_limits_it_is_what_the_host_has(tmp_path: Path) -> None:
    assert host_memory(host(tmp_path, {})) == (48 * GIB, 64 * GIB)


def test_nothing_is_known_where_nobody_tells(tmp_path: Path) -> None:
    assert host_memory(tmp_path) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_of_this_host() -> None:
    available, total = host_memory()
    assert 0 < available <= total


def test_a_container_has_what_its_group_has_left(tmp_path: Path) -> None:
    """Cached files that nobody has asked for lately are as good as free."""
    files = {"proc/self/cgroup": "0::/\n", **group("", 8 * GIB, 6 * GIB, cached=GIB)}
    assert host_memory(host(tmp_path, files)) == (3 * GIB, 8 * GIB)


def test_the_tightest_of_the_groups_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a.slice/b.scope\n",
        **group("/a.slice/b.scope", "max", GIB),
        **group("/a.slice", 16 * GIB, 14 * GIB),
        **group("", 32 * GIB, 14 * GIB),
    }
    assert host_memory(host(tmp_path, files)) == (2 * GIB, 16 * GIB)


def test_a_group_that_is_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", **group("", GIB, 2 * GIB)}
    assert host_memory(host(tmp_path, files)) == (0, GIB)


@pytest.mark.parametrize("path", ["docker/123", ""])
def test_the_first_version_of_groups(tmp_path: Path, path: str) -> None:
    """In a container the path is the host's and the files are at the top."""
    folder = f"sys/fs/cgroup/memory/{path}"
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/docker/123\n",
        f"{folder}/memory.limit_in_bytes": f"{4 * GIB}\n",
        f"{folder}/memory.usage_in_bytes": f"{GIB}\n",
        f"{folder}/memory.stat": "total_inactive_file 0\n",
    }
    assert host_memory(host(tmp_path, files)) == (3 * GIB, 4 * GIB)


def test_a_limit_beyond_the_host_is_none(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", **group("", 1 << 62, GIB)}
    assert host_memory(host(tmp_path, files)) == (48 * GIB, 64 * GIB)


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({}, 16),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"sys/fs/cgroup/a/cpu.max": "800000 100000", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"sys/fs/cgroup/a/cpu.max": "max 100000", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "no number"}, 16),
    ],
)
def test_processors_are_as_many_as_the_quota_is_worth(
    files: dict[str, str], processors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert host_processors(host(tmp_path, {"proc/self/cgroup": "0::/a\n", **files})) == processors


def test_processors_of_the_first_version_of_groups(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    folder = "sys/fs/cgroup/cpu"
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/1\n",
        f"{folder}/cpu.cfs_quota_us": "200000\n",
        f"{folder}/cpu.cfs_period_us": "100000\n",
        f"{folder}/docker/1/cpu.cfs_quota_us": "-1\n",
        f"{folder}/docker/1/cpu.cfs_period_us": "100000\n",
    }
    assert host_processors(host(tmp_path, files)) == 2


def test_processors_of_this_host() -> None:
    assert 1 <= host_processors() <= (os.cpu_count() or 1)
