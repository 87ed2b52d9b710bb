"""`millpond embed`: what it refuses, in one line and before any work is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import refusal, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ('{"text": "a"}\n{"text": "b"', [], "in.jsonl, line 2: unexpected end of data"),
        ('{"text": "a"}\n[1, 2]', [], "in.jsonl, line 2: expected an object or a string"),
        ('{"text": "a"}\n\n{"text": null}', [], "line 3: 'text' is null, not a string"),
        ('{"body": "a"}', [], "there is no 'text', only 'body': name the text with --column"),
        ('{"text": "a", "embedding": 1}', [], "has a 'embedding' already"),
        ('{"text": "a"}\n\xff', ["--input-format", "text"], "line 2: 'utf-8' codec"),
    ],
)
def test_a_bad_line_is_named_before_a_model_is_loaded(
    content: str, flags: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content.encode("latin-1"))
    flags = [*flags, "--model", str(tmp_path / "no model")]
    output = tmp_path / "out.jsonl"
    assert message in refusal("embed", tmp_path / "in.jsonl", "-o", output, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a", None]}, "row 1: 'text' is None, not a string"),
        ({"text": [1, 2]}, "row 0: 'text' is 1, not a string"),
        ({"body": ["a"]}, "there is no column 'text', only 'body'"),
        ({"text": ["a"], "embedding": [1]}, "has a column 'embedding' already"),
    ],
)
def test_a_bad_parquet_file_is_refused(
    table: dict[str, list[Any]], message: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    line = refusal("embed", tmp_path / "in.parquet", "-o", tmp_path / "out.parquet")
    assert message in line


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("text", encoding="utf-8")
    line = refusal("embed", tmp_path / "in.parquet", "-o", tmp_path / "out.parquet")
    assert "in.parquet cannot be read as Parquet" in line


SHORT, LONG = 2**60, 2**64


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([1, "one"], "parquet", "values of several types"),
        ([{"a": [1]}, {"a": ["one"]}], "parquet", "values of several types"),
        ([SHORT, 0.5], "parquet", "values of several types"),
        ([{"a": [SHORT]}, {"a": [0.5]}], "parquet", "values of several types"),
        ([1, 2**63], "parquet", "values of several types"),
        ([1, LONG], "parquet", f"line 2: the integer {LONG} has more than 64 bits"),
        ([1, LONG], "jsonl", f"line 2: the integer {LONG} has more than 64 bits"),
        ([1, -(2**63) - 1], "jsonl", "line 2: the integer -9223372036854775809 has more than"),
        ([1, {"a": [10**30]}], "jsonl", "line 2: the integer 1000000000"),
    ],
)
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_what_an_output_cannot_keep_is_found_before_a_model_is_loaded(
    chunk_size: int, values: list[Any], kind: str, message: str, tmp_path: Path
) -> None:
    lines = [json.dumps({"text": "a", "x": value}) for value in values]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = ("--model", tmp_path / "no model", "--chunk-size", chunk_size)
    line = refusal("embed", tmp_path / "in.jsonl", "-o", tmp_path / f"out.{kind}", *flags)
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_integers_of_64_bits_are_kept(embed: Callable[..., str], tmp_path: Path) -> None:
    row = {"text": "1" * 30, "low": -(2**63), "high": 2**63 - 1}
    (tmp_path / "in.jsonl").write_text(json.dumps(row), encoding="utf-8")
    for kind in ("jsonl", "parquet"):
        embed(tmp_path / "in.jsonl", tmp_path / f"out.{kind}")
        (found,) = rows_of(tmp_path / f"out.{kind}")
        assert {name: found[name] for name in row} == row


def test_integers_that_are_not_kept_may_be_of_any_length(
    embed: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text(f'{{"text": "a", "x": {LONG}}}', encoding="utf-8")
    embed(tmp_path / "in.jsonl", tmp_path / "out.npy")
    embed(tmp_path / "in.jsonl", tmp_path / "out.parquet", "--vectors-only")


def test_integers_become_fractions_where_they_can(
    embed: Callable[..., str], tmp_path: Path
) -> None:
    lines = [json.dumps({"text": "a", "x": value, "id": SHORT}) for value in (1, 0.5, None)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    embed(tmp_path / "in.jsonl", tmp_path / "out.parquet", "--chunk-size", 1)
    assert [row["x"] for row in rows_of(tmp_path / "out.parquet")] == [1.0, 0.5, None]
    assert {row["id"] for row in rows_of(tmp_path / "out.parquet")} == {SHORT}


def strings(*values: bytes) -> pa.Array:
    """A column of strings, whatever the bytes are."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    ("table", "kind", "message"),
    [
        (
            pa.Table.from_arrays([strings(b"a"), strings(b"b")], names=["text", "text"]),
            "npy",
            "has several columns 'text': rename them",
        ),
        (
            pa.Table.from_arrays([strings(b"a")] * 3, names=["text", "x", "x"]),
            "parquet",
            "has several columns 'x': rename them, or leave them out with --vectors-only",
        ),
        (
            pa.table({"text": strings(b"a", b"b", b"\xff")}),
            "npy",
            "row 2: 'text' is not UTF-8 (invalid start byte)",
        ),
        (
            pa.table({"text": strings(b"a", b"b"), "x": strings(b"a", b"\xff")}),
            "jsonl",
            "among rows 0 to 1, one has a column that cannot be written as JSON ('utf-8' codec",
        ),
        (
            pa.table({"text": strings(b"a", b"b"), "x": pa.array([b"a", b"b"])}),
            "jsonl",
            "row 0 has a column that cannot be written as JSON",
        ),
    ],
)
def test_a_parquet_file_that_cannot_be_kept_is_refused_before_a_model_is_loaded(
    table: pa.Table, kind: str, message: str, tmp_path: Path
) -> None:
    pq.write_table(table, tmp_path / "in.parquet")
    flags = ("--model", tmp_path / "no model")
    line = refusal("embed", tmp_path / "in.parquet", "-o", tmp_path / f"out.{kind}", *flags)
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_columns_of_one_name_may_be_left_out(embed: Callable[..., str], tmp_path: Path) -> None:
    table = pa.Table.from_arrays([strings(b"a")] * 3, names=["text", "x", "x"])
    pq.write_table(table, tmp_path / "in.parquet")
    embed(tmp_path / "in.parquet", tmp_path / "out.parquet", "--vectors-only")


def test_a_damaged_parquet_file_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["one", "two"] * 100}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[10:40] = bytes(30)
    path.write_bytes(content)
    line = refusal("embed", path, "-o", tmp_path / "out.npy")
    assert f"{path} cannot be read as Parquet: " in line


# What stands where the output is to go.


def refused_output(tmp_path: Path, output: object) -> str:
    source = tmp_path / "in.txt"
    source.write_text("text", encoding="utf-8")
    flags = ("--output-format", "npy", "--model", tmp_path / "no model")
    return refusal("embed", source, "-o", output, *flags)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", ["out.npy.part", "out.npy.part.json"])
def test_what_is_no_ordinary_file_is_left_alone(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    line = refused_output(tmp_path, tmp_path / "out.npy")
    assert f"{tmp_path / name} exists and is not a regular file" in line
    assert (tmp_path / name).is_fifo()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_a_link_points_to_is_left_alone_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "out.npy").symlink_to(tmp_path / "fifo")
    assert "out.npy, which is not a file" in refused_output(tmp_path, tmp_path / "out.npy")
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    assert "is not a regular file" in refused_output(tmp_path, tmp_path / "loop.npy")
    (tmp_path / "lost.npy").symlink_to(tmp_path / "no" / "out.npy")
    assert "is not a folder" in refused_output(tmp_path, tmp_path / "lost.npy")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_link_stays_and_what_it_points_to_is_written(
    is_there: bool, embed: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    if is_there:
        (folder / "vectors").write_bytes(b"old")
    (tmp_path / "out.npy").symlink_to(folder / "vectors")
    (tmp_path / "in.txt").write_text("one\ntwo", encoding="utf-8")
    embed(tmp_path / "in.txt", tmp_path / "out.npy")
    assert (tmp_path / "out.npy").is_symlink()
    assert len(np.load(folder / "vectors")) == 2
    assert [path.name for path in folder.iterdir()] == ["vectors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.txt", "-o", "out.npy"], "nothing.txt: No such file or directory"),
        (["nothing.parquet", "-o", "out.npy"], "nothing.parquet: No such file or directory"),
        (["in.doc", "-o", "out.npy"], "the suffix '.doc' is unknown"),
        (["in.txt", "-o", "out.csv"], "the suffix '.csv' is unknown"),
        (["in.txt", "-o", "in.txt", "--output-format", "npy"], "would replace its own input"),
        (["in.txt", "-o", "."], "is a folder"),
        (["in.txt", "-o", "no/out.npy"], "no is not a folder"),
        (["in.txt"], "Missing option '--output'"),
        (["in.txt", "-o", "out.npy", "--output-dtype", "int8"], "range from all vectors"),
        (["in.txt", "-o", "out.npy", "--output-dtype", "uint8"], "range from all vectors"),
        (["in.txt", "-o", "out.npy", "--chunk-size", "0"], "--chunk-size"),
        (["in.txt", "-o", "out.npy", "--resume", "--restart"], "choose one"),
        (["-", "-o", "out.npy", "--resume"], "standard input cannot be read twice"),
        (["-", "-o", "out.npy", "--input-format", "parquet"], "cannot be read from standard input"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("text", encoding="utf-8")
    assert message in refusal("embed", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_folder_that_is_not_to_be_written_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    line = refused_output(tmp_path, tmp_path / "out.npy")
    assert line == f"{tmp_path} is not writable: name another folder"


def test_standard_input_is_not_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.txt"
    path.write_text("text", encoding="utf-8")
    monkeypatch.setattr(os, "fstat", lambda number: path.stat())
    assert "would replace its own input" in refusal("embed", "-", "-o", path, "--output-format=npy")
