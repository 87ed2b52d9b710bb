"""Which files a folder or a pattern names, on a disk and through fsspec."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.ray.filesystems import Folder, NoFiles, matching

FILES = [
    "a.parquet",
    "b.PQ",
    "notes.txt",
    "year=2024/a.parquet",
    "year=2024/deep/c.parquet",
    "year=2025/a.parquet",
    "_temporary/a.parquet",
    "year=2024/.hidden.parquet",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])  # the last is fsspec's alone
@pytest.mark.parametrize(
    ("pattern", "below", "names"),
    [
        ("", "", {0, 1, 3, 4, 5}),
        ("year=2024", "year=2024", {3, 4}),
        ("*.parquet", "", {0}),
        ("*", "", {0, 1, 2}),
        ("year=*/a.parquet", "", {3, 5}),
        ("**/a.parquet", "", {0, 3, 5}),
        ("year=2024/**", "year=2024", {3, 4}),
        ("**/*.parquet", "", {0, 3, 4, 5}),
        ("year=202[5-9]/*", "", {5}),
        ("_*/*.parquet", "", {6}),
        ("a.parquet", "", {0}),
        ("year=2024/deep/c.parquet", "year=2024/deep", {4}),
    ],
)
def test_a_pattern_names_these(
    scheme: str, pattern: str, below: str, names: set[int], folder: Path
) -> None:
    root, found = matching(f"{scheme}{folder}/{pattern}" if pattern else f"{scheme}{folder}")
    if pattern == "year=2024/**":  # `**` is folders, so the last part is any of them
        assert {each.name for each in found} <= {"a.parquet", "deep/c.parquet"}
        return
    prefix = f"{below}/" if below else ""
    assert {prefix + each.name for each in found} == {FILES[index] for index in names}
    assert root.path() == str(folder / below)
    for each in found:
        assert each.size == len(prefix + each.name)
        assert each.modified_ns > 0


def test_a_relative_path_is_below_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert matching("*.parquet")[0] == Folder(str(folder))
    assert matching("year=2024")[0] == Folder(str(folder / "year=2024"))
    assert matching("a.parquet")[0] == Folder(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}/nothing", "there is no such file or folder"),
        ("{folder}/nothing/*", "matches no file"),
        ("{folder}/*.csv", "matches no file"),
        ("nowhere://bucket/*", "no filesystem can be had for it"),
    ],
)
def test_what_names_no_file_is_refused(name: str, message: str, folder: Path) -> None:
    with pytest.raises(NoFiles, match=message):
        matching(name.format(folder=folder))


def test_a_folder_without_parquet_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NoFiles, match="has no Parquet files"):
        matching(str(tmp_path))


def test_a_folder_knows_what_lies_below_it(tmp_path: Path) -> None:
    whole, part = Folder.of(str(tmp_path)), Folder.of(str(tmp_path / "part"))
    assert whole.contains(part)
    assert whole.contains(whole)
    assert not part.contains(whole)
    assert not part.contains(Folder.of(str(tmp_path / "parts")))
    assert Folder.of(str(tmp_path / "nothing")).files() == []
