"""An input that changes while it is read ends the run before anything is published."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import refusal, rows_of, run

from millpond.cli.files.report import Report

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = [{"id": str(number), "text": f"stone {number:03}"} for number in range(40)]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """A file of these rows, by its suffix, in place of what is there."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            whole = path.suffix == ".jsonl"
            file.writelines(f"{json.dumps(row) if whole else row['text']}\n" for row in rows)


def grow(path: Path) -> None:
    write(path, [*ROWS, *ROWS])


def shrink(path: Path) -> None:
    write(path, ROWS[:10])


def rewrite(path: Path) -> None:
    before = path.stat()
    write(path, ROWS[::-1])
    assert path.stat().st_size == before.st_size or path.suffix == ".parquet"
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replace(path: Path) -> None:
    other = path.with_suffix(f".new{path.suffix}")
    write(other, ROWS[::-1])
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def remove(path: Path) -> None:
    path.unlink()


CHANGES = [grow, shrink, rewrite, replace, empty, remove]


@pytest.fixture(params=["txt", "jsonl", "csv", "parquet"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"in.{request.param}"
    write(path, ROWS)
    return path


@pytest.fixture
def call(source: Path, prompted: Path, tmp_path: Path) -> list[object]:
    flags = ["--model", prompted, "--dtype", "float32", "--chunk-size", 2]
    return ["embed", source, "-o", tmp_path / "out.jsonl", *flags]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_amid_the_run_publishes_nothing(
    change: Callable[[Path], None],
    source: Path,
    call: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def saved(report: Report, rows: int) -> None:
        if report._output.rows == 4:
            change(source)

    monkeypatch.setattr(Report, "saved", saved)
    line = refusal(*call)
    assert line.startswith(f"{source} changed while it was read, so its rows may be mixed: ")
    assert line.endswith("run this again with --restart")
    note = json.loads((tmp_path / "out.jsonl.part.json").read_text(encoding="utf-8"))
    assert note["rows"] == 4  # those from before the change
    assert not (tmp_path / "out.jsonl").exists()
    if change in (grow, rewrite, replace):
        monkeypatch.undo()
        assert run(*call, "--restart").exit_code == 0
        texts = [row["text"] for row in rows_of(tmp_path / "out.jsonl")]
        expected = [*ROWS, *ROWS] if change is grow else ROWS[::-1]
        assert texts == [row["text"] for row in expected]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_behind_the_last_row_publishes_nothing(
    change: Callable[[Path], None],
    source: Path,
    call: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def saved(report: Report, rows: int) -> None:
        if report._output.rows == len(ROWS):
            change(source)

    monkeypatch.setattr(Report, "saved", saved)
    assert "changed while it was read" in refusal(*call)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("change", [grow, shrink, rewrite, replace])
def test_a_change_amid_the_first_reading_is_found_before_a_model_is_loaded(
    change: Callable[[Path], None],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules["millpond.cli.files.run"]
    digest = module.file_digest

    def late(path: Path) -> str:
        change(path)
        found: str = digest(path)
        return found

    monkeypatch.setattr(module, "file_digest", late)
    flags = ("--model", tmp_path / "no model")
    assert "changed while" in refusal("embed", source, "-o", tmp_path / "out.npy", *flags)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_file_that_was_only_touched_is_gone_on_with(
    source: Path, call: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved(report: Report, rows: int) -> None:
        if report._output.rows == 4:
            os.utime(source, ns=(0, 0))

    with monkeypatch.context() as patch:
        patch.setattr(Report, "saved", saved)
        assert "changed while it was read" in refusal(*call)
    assert "36 texts in" in run(*call, "--resume").stderr
    assert len(rows_of(tmp_path / "out.jsonl")) == len(ROWS)
