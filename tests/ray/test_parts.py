"""`millpond embed --ray`: what it refuses and leaves out, and what an actor makes of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import refusal, run

from millpond import Engine
from millpond.cli import embed_parts as command_of_parts
from millpond.ray import parts
from millpond.ray.actors import ActorPool
from millpond.ray.batches import Columns
from millpond.ray.filesystems import Folder
from millpond.ray.parts import PartBatch, PartDone, PartsSpec

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: Any = {"device": "cpu", "dtype": "float32", "batch_invariant": True}


@pytest.fixture(scope="module")
def bert(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("bert"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "day=1").mkdir(parents=True)
    for number, name in enumerate(["a.parquet", "day=1/b.parquet"]):
        texts = [f"text {row} of {number}" for row in range(10 + number)]
        table = pa.table({"id": range(len(texts)), "text": texts})
        pq.write_table(table, folder / name, row_group_size=3)
    return folder


def batch_of(
    source: Path, target: Path, model: str, *, on_error: Any = "report", **more: Any
) -> PartBatch:
    spec = PartsSpec(
        source=Folder.of(str(source)),
        target=Folder.of(str(target)),
        columns=Columns(
            read=("text",), output="embedding", error="embedding_error", on_error=on_error
        ),
        vectors_only=more.pop("vectors_only", False),
        chunk_rows=4,
    )
    return PartBatch(spec, model, OPTIONS, more)


def embed_here(batch: PartBatch, *names: str) -> list[PartDone]:
    return [PartDone(**row) for row in batch(pa.table({"name": names})).to_pylist()]


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_file_becomes_one_of_the_same_name(source: Path, tmp_path: Path, bert: str) -> None:
    target = tmp_path / "out"
    batch = batch_of(source, target, bert)
    done = embed_here(batch, "a.parquet", "day=1/b.parquet")
    assert done == [
        PartDone(name="a.parquet", rows=10),
        PartDone(name="day=1/b.parquet", rows=11),
    ]
    assert names_below(target) == {"a.parquet", "day=1/b.parquet"}
    found = pq.read_table(target / "day=1/b.parquet", partitioning=None)
    assert found.select(["id", "text"]).equals(
        pq.read_table(source / "day=1/b.parquet", partitioning=None)
    )
    assert pa.types.is_fixed_size_list(found.schema.field("embedding").type)
    with Engine(bert, **OPTIONS) as engine:
        expected = engine.embed(found.column("text").to_pylist())
    assert np.array_equal(np.float32(found.column("embedding").to_pylist()), expected)


def test_vectors_only_leaves_the_columns_out(source: Path, tmp_path: Path, bert: str) -> None:
    embed_here(batch_of(source, tmp_path / "out", bert, vectors_only=True), "a.parquet")
    assert pq.read_schema(tmp_path / "out/a.parquet").names == ["embedding", "embedding_error"]


def test_an_empty_file_has_the_columns_too(source: Path, tmp_path: Path, bert: str) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    pq.write_table(empty, source / "empty.parquet")
    assert embed_here(batch_of(source, tmp_path / "out", bert), "empty.parquet")[0].rows == 0
    schema = pq.read_schema(tmp_path / "out/empty.parquet")
    assert schema.names == ["text", "embedding", "embedding_error"]


def test_a_file_that_cannot_be_read_costs_no_other(source: Path, tmp_path: Path, bert: str) -> None:
    (source / "broken.parquet").write_bytes(b"nothing")
    pq.write_table(pa.table({"body": ["x"]}), source / "other.parquet")
    batch = batch_of(source, tmp_path / "out", bert)
    *wrong, right = embed_here(
        batch, "broken.parquet", "other.parquet", "gone.parquet", "a.parquet"
    )
    assert right == PartDone(name="a.parquet", rows=10)
    assert [part.ends_all for part in wrong] == [False] * 3
    assert "there is no column 'text', only 'body'" in str(wrong[1].error)
    assert "No such file" in str(wrong[2].error)
    assert names_below(tmp_path / "out") == {"a.parquet"}


POISONED = ["one", "two", "three", "four", "five", None, "seven"]


def test_rows_without_a_vector_are_counted(source: Path, tmp_path: Path, bert: str) -> None:
    pq.write_table(pa.table({"text": POISONED}), source / "a.parquet")
    (done,) = embed_here(batch_of(source, tmp_path / "out", bert), "a.parquet")
    assert (done.rows, done.failed) == (7, 1)
    (dropped,) = embed_here(batch_of(source, tmp_path / "less", bert, on_error="drop"), "a.parquet")
    assert (dropped.rows, dropped.failed) == (7, 1)
    assert pq.read_table(tmp_path / "less/a.parquet").num_rows == 6
    (raised,) = embed_here(batch_of(source, tmp_path / "none", bert, on_error="raise"), "a.parquet")
    assert str(raised.error).startswith("row 5: expected a string")
    assert names_below(tmp_path / "none") == set()


def test_what_is_wrong_with_the_model_ends_all(source: Path, tmp_path: Path) -> None:
    (done,) = embed_here(batch_of(source, tmp_path / "out", "/no/such/model"), "a.parquet")
    assert done.ends_all
    assert "/no/such/model" in str(done.error)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command with an actor's work in this process; gives the names each run embeds."""
    runs: list[list[str]] = []

    def embed_parts(
        names: Any, spec: Any, *, model: str, options: Any, call: Any, pool: Any
    ) -> Iterator[PartDone]:
        runs.append(list(names))
        batch = PartBatch(spec, model, {**options, "device": "cpu"}, call)
        for name in names:
            yield from embed_here(batch, name)

    monkeypatch.setattr(command_of_parts, "embed_parts", embed_parts)
    monkeypatch.setattr(parts.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ActorPool, "lack", lambda self: None)
    return runs


@pytest.fixture
def command(source: Path, tmp_path: Path, bert: str) -> list[object]:
    flags = ["--ray", "auto", "-m", bert, "--dtype", "float32"]
    return ["embed", source, "-o", tmp_path / "out", *flags]


def test_the_same_command_continues(
    without_ray: list[list[str]], command: list[object], source: Path, tmp_path: Path
) -> None:
    first = run(*command)
    assert first.exit_code == 0, first.output
    assert "21 rows of 2 files" in first.stderr
    assert run(*command).stderr.endswith("is already complete\n")
    (tmp_path / "out/a.parquet").unlink()
    assert "10 rows of 1 files" in run(*command).stderr
    later = (tmp_path / "out/a.parquet").stat().st_mtime_ns + 10**9
    os.utime(source / "day=1/b.parquet", ns=(later, later))
    assert "with 1 files from an earlier run" in run(*command).stderr
    assert "21 rows of 2 files" in run(*command, "--restart").stderr
    both = ["day=1/b.parquet", "a.parquet"]  # the largest first
    assert without_ray == [both, ["a.parquet"], ["day=1/b.parquet"], both]


def test_another_model_s_folder_is_refused(
    without_ray: list[list[str]], command: list[object], tmp_path: Path
) -> None:
    run(*command)
    message = refusal(*command, "--dimensions", 8)
    assert "was started differently: dimensions null, now 8" in message
    for part in (tmp_path / "out").rglob("*.parquet"):
        part.rename(part.with_name("other-" + part.name))
    assert "was started differently" in refusal(*command, "--dimensions", 8)
    run(*command)
    (tmp_path / "out/_millpond.json").write_text("{")
    assert "is damaged" in refusal(*command)
    (tmp_path / "out/_millpond.json").unlink()
    assert "that this command did not write" in refusal(*command)
    assert run(*command, "--dimensions", 8, "--restart").exit_code == 0
    assert json.loads((tmp_path / "out/_millpond.json").read_text())["dimensions"] == 8


def test_a_run_that_wrote_nothing_binds_no_other(
    without_ray: list[list[str]], command: list[object], tmp_path: Path
) -> None:
    refusal(*command, "--task", "nonsense")
    assert (tmp_path / "out/_millpond.json").exists()
    assert run(*command, "--dimensions", 8).exit_code == 0


def test_files_that_were_not_written_are_told_at_the_end(
    without_ray: list[list[str]], command: list[object], source: Path
) -> None:
    for number in range(12):
        (source / f"broken{number}.parquet").write_bytes(b"nothing")
    result = run(*command)
    assert result.exit_code == 2
    *shown, last = result.stderr.splitlines()
    assert len(shown) == 10
    assert last.startswith("millpond: error: 12 of 14 files were not written, 2 of them not shown")


def test_what_is_wrong_with_the_model_is_one_line(
    without_ray: list[list[str]], command: list[object]
) -> None:
    assert "this model knows" in refusal(*command, "--task", "nonsense")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--actors", "many"], "--actors many: give a number"),
        (["--actors", "4:2"], "the least and the most"),
        (["--actors", "0"], "the least and the most"),
        (["--gpus-per-actor", "-1"], "gpus=-1.0"),
        (["--gpus-per-actor", "1.5"], "whole numbers"),
        (["--output-format", "npy"], "Parquet files, not npy"),
        (["--input-format", "csv"], "Parquet files, not csv"),
        (["--output-dtype", "int8"], "write float32"),
        (["--max-length", "0"], "max_length=0"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(
    flags: list[str], message: str, without_ray: list[list[str]], command: list[object]
) -> None:
    assert message in refusal(*command, *flags)
    assert without_ray == []


def test_an_output_inside_the_input_is_refused(
    without_ray: list[list[str]], command: list[object], source: Path
) -> None:
    assert "lie in each other" in refusal(*command, "-o", source / "vectors")
    assert "lie in each other" in refusal(*command, "-o", source)


@pytest.mark.parametrize("flag", [["--actors", "2"], ["--on-error", "drop"]])
def test_its_flags_need_it(flag: list[str], source: Path, tmp_path: Path) -> None:
    message = refusal("embed", source / "a.parquet", "-o", tmp_path / "x.parquet", *flag)
    assert message == f"{flag[0]} needs --ray beside it"
