"""CSV and TSV: rows by the names of their columns, and a line for every way they can be wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import TEXTS, refusal, rows_of, run

from millpond import Engine
from millpond.cli.files import csv as csv_files

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = [
    {"id": f"{number:03}", "text": text}
    for number, text in enumerate([*TEXTS, 'a "quoted", piece', "two\nlines", "a\ttab"])
]


def written(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind_out", ["npy", "jsonl", "parquet"])
@pytest.mark.parametrize("kind_in", ["csv", "tsv"])
def test_rows_keep_their_columns_as_strings(
    kind_in: str, kind_out: str, embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    source, output = written(tmp_path / f"in.{kind_in}"), tmp_path / f"out.{kind_out}"
    embed(source, output)
    expected = engine.embed([row["text"] for row in ROWS])
    if kind_out == "npy":
        assert np.array_equal(np.load(output), expected)
        return
    rows = rows_of(output)
    vectors = np.array([row.pop("embedding") for row in rows], dtype=np.float32)
    assert np.array_equal(vectors, expected)
    assert rows == ROWS


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"\xef\xbb\xbftext,n\r\none,1\r\ntwo,2\r\n", ["one", "two"]),
        (b'"text"\n\n"one"\n""\n\n', ["one", ""]),
        (b'n,text\n1,say "hi"\n', ['say "hi"']),
        (b"x,x,text\n1,2,one", ["one"]),
        (b",text\n0,one\n", ["one"]),
        (b"text\n", []),
    ],
    ids=["Windows", "blank lines", "quotes within", "two that are not kept", "no name", "no rows"],
)
def test_what_counts_as_rows(
    content: bytes, texts: list[str], embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    embed(tmp_path / "in.csv", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), engine.embed(texts))


def test_no_rows_keep_their_columns(embed: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n", encoding="utf-8")
    embed(tmp_path / "in.csv", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["id", "text", "embedding"]


def test_a_field_may_be_longer_than_the_reader_takes_by_itself(
    embed: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("text\n" + "pond " * 40_000, encoding="utf-8")
    assert "1 text in" in embed(tmp_path / "in.csv", tmp_path / "out.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "in.csv is empty: its first line must name the columns"),
        (b"\n\n", "in.csv is empty: its first line must name the columns"),
        (
            b"one,1\ntwo,2",
            "in.csv: there is no column 'text', only 'one', '1': name the text with --column; the "
            "first line names the columns",
        ),
        (b"text,text\na,b", "in.csv has several columns 'text': rename them"),
        (b"text,x,x\na,b,c", "several columns 'x': rename them, or leave them out with --vectors"),
        (b"text,embedding\na,b", "in.csv has a column 'embedding' already"),
        (b"text,n\na,1\nb\n", "in.csv, line 3 has 1 fields, and the first line names 2 columns"),
        (b'text,n\n"a\nb",1\nc,2,3', "in.csv, line 4 has 3 fields, and the first line names 2"),
        (b'text\na\n"b\nc\n', "in.csv, line 3: a quote is not closed"),
        (b'text\n"a"b\n', "line 2: text follows a closing quote; double a quote"),
        (b"text\na\n\xff\n", "in.csv, line 3: 'utf-8' codec can't decode"),
        (b'text\n"a\n\xff"\n', "in.csv, line 3: 'utf-8' codec can't decode"),
        (b"text\ra\rb", "in.csv, line 1: new-line character seen in unquoted field"),
    ],
)
def test_what_is_wrong_is_named_before_a_model_is_loaded(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    flags = ("--model", tmp_path / "no model")
    line = refusal("embed", tmp_path / "in.csv", "-o", tmp_path / "out.parquet", *flags)
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_quote_that_is_never_closed_does_not_take_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "LONGEST_FIELD", 10)
    before = csv.field_size_limit(10)
    try:
        (tmp_path / "in.csv").write_text('text\n"a\n' + "b\n" * 100, encoding="utf-8")
        line = refusal("embed", tmp_path / "in.csv", "-o", tmp_path / "out.npy")
    finally:
        csv.field_size_limit(before)
    assert line.endswith("in.csv, line 2: a quote is not closed")


def test_an_interrupted_run_goes_on(
    embed: Callable[..., str], prompted: Path, tmp_path: Path
) -> None:
    rows = [{"id": str(number), "text": "stone"} for number in range(8)]
    rows.append({"id": "8", "text": "long " * 200})
    source, output = written(tmp_path / "in.csv", rows), tmp_path / "out.jsonl"
    call = ["embed", source, "-o", output, "--model", prompted, "--dtype", "float32"]
    call += ["--chunk-size", 3, "--truncate", "error"]
    assert refusal(*call).startswith("text 8: ")
    note = output.with_name("out.jsonl.part.json")
    assert '"rows": 6' in note.read_text(encoding="utf-8")
    assert refusal(*call, "--resume").startswith("text 8: ")
    result = run(*call[:-2], "--restart")
    assert "9 texts in" in result.stderr
    assert [row["id"] for row in rows_of(output)] == [row["id"] for row in rows]


# Other encodings, other delimiters, no header.

WORDS = ["café für 3 €", "naïve", 'a; "b"']


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-8-sig", "UTF8"])
def test_a_file_may_be_in_another_encoding(
    encoding: str, embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.jsonl"
    with source.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=";").writerows([["text"], *([word] for word in WORDS)])
    embed(source, output, "--encoding", encoding, "--delimiter", ";")
    assert [row["text"] for row in rows_of(output)] == WORDS
    lines = tmp_path / "in.txt"
    lines.write_text("\n".join(WORDS), encoding=encoding)
    embed(lines, tmp_path / "out.npy", "--encoding", encoding)
    assert np.array_equal(np.load(tmp_path / "out.npy"), engine.embed(WORDS))


def test_columns_without_names_are_named_by_their_places(
    embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.tsv", tmp_path / "out.parquet"
    source.write_text("1\tone\n2\ttwo\n", encoding="utf-8")
    embed(source, output, "--no-header", "--column", 2)
    rows = rows_of(output)
    assert [(row["1"], row["2"]) for row in rows] == [("1", "one"), ("2", "two")]
    assert np.array_equal(
        np.array([row["embedding"] for row in rows]), engine.embed(["one", "two"])
    )


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("text\ncaf\xe9".encode("cp1252"), [], "line 2: 'utf-8' codec can't decode"),
        ("text\ncaf\xe9".encode("cp1252"), [], "name the encoding with --encoding, such as cp1252"),
        (b"text\none\n\x81", ["--encoding", "cp1252"], "it is not in cp1252"),
        (b"text\n", ["--encoding", "latn-9"], "--encoding latn-9: there is none of that name"),
        (b"text\n", ["--encoding", "base64"], "--encoding base64: there is none"),
        (b"text\n", ["--delimiter", "::"], "--delimiter '::': it is one character"),
        (b"a,b\n1,2,3\n", ["--no-header", "--column", "1"], "3 fields, and the first line has 2"),
        (b"a,b\n", ["--no-header"], "there is no column 'text', only '1', '2'"),
    ],
)
def test_what_is_wrong_with_them_is_named(
    content: bytes, flags: list[str], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(content)
    assert message in refusal("embed", source, "-o", tmp_path / "out.jsonl", *flags)


def test_flags_of_csv_are_refused_for_other_formats(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("one", encoding="utf-8")
    for flags in (["--no-header"], ["--delimiter", ";"]):
        assert "for CSV and TSV" in refusal("embed", source, "-o", tmp_path / "o.npy", *flags)
