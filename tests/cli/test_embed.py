"""`millpond embed`: every format in and out, and every flag."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import ROWS, TEXTS, refusal, rows_of
from families import MAX_LENGTH, WIDTH

from millpond import Engine, quantize

pytestmark = pytest.mark.usefixtures("one_thread")

Vectors = npt.NDArray[Any]


def vectors_of(path: Path) -> Vectors:
    if path.suffix == ".npy":
        vectors: Vectors = np.load(path)
        return vectors
    return np.array([row["embedding"] for row in rows_of(path)])


@pytest.mark.parametrize("kind_out", ["npy", "jsonl", "parquet"])
@pytest.mark.parametrize("kind_in", ["txt", "jsonl", "parquet"])
def test_every_format_in_and_out(
    kind_in: str,
    kind_out: str,
    inputs: dict[str, Path],
    embed: Callable[..., str],
    engine: Engine,
    tmp_path: Path,
) -> None:
    output = tmp_path / f"out.{kind_out}"
    embed(inputs[kind_in], output)
    assert np.array_equal(vectors_of(output).astype(np.float32), engine.embed(TEXTS))
    assert sorted(tmp_path.iterdir()) == sorted([*inputs.values(), output])
    if kind_out != "npy":
        rows = rows_of(output)
        kept = [{name: row[name] for name in row if name != "embedding"} for row in rows]
        assert kept == (ROWS if kind_in != "txt" else [{"text": text} for text in TEXTS])
        assert all(list(row)[-1] == "embedding" for row in rows)


def test_an_npy_file_is_the_one_numpy_writes(
    inputs: dict[str, Path], embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    embed(inputs["txt"], tmp_path / "out.npy")
    np.save(tmp_path / "expected.npy", engine.embed(TEXTS))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_parquet_keeps_the_types_of_its_columns(embed: Callable[..., str], tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": pa.array([1, 2, None], pa.timestamp("ms", tz="UTC")),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "text": pa.array(TEXTS[:3], pa.large_string()),
            "blob": pa.array([b"\xff", b"", None]),
        }
    ).replace_schema_metadata({"origin": "mill"})
    pq.write_table(table, tmp_path / "in.parquet")
    embed(tmp_path / "in.parquet", tmp_path / "out.parquet", "--chunk-size", 2)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.metadata[b"origin"] == b"mill"
    assert found.select(table.column_names).cast(table.schema).equals(table)
    assert found.schema.field("kind").type == table.schema.field("kind").type
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), WIDTH)


def test_json_lines_need_not_have_the_same_columns(
    embed: Callable[..., str], tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a"},
        {"text": "b", "score": 1},
        {"text": "c", "score": None},
        {"text": "d", "score": 0.5, "who": "me"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    embed(tmp_path / "in.jsonl", tmp_path / "out.parquet", "--chunk-size", 1)
    table = pq.read_table(tmp_path / "out.parquet", columns=["text", "score", "who"])
    assert table.to_pylist() == [{"score": None, "who": None, **row} for row in rows]
    assert table.schema.field("score").type == pa.float64()


def test_strings_are_json_lines_too(
    embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('"one"\n\n  \n"two"\n', encoding="utf-8")
    embed(tmp_path / "in.jsonl", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), engine.embed(["one", "two"]))


def test_lines_may_end_as_on_windows(
    embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    embed(tmp_path / "in.txt", tmp_path / "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), engine.embed(["one", "two"]))


@pytest.mark.parametrize("kind", ["npy", "jsonl", "parquet"])
@pytest.mark.parametrize("kind_in", ["txt", "parquet"])
def test_no_rows_in_no_rows_out(
    kind_in: str, kind: str, embed: Callable[..., str], tmp_path: Path
) -> None:
    source, output = tmp_path / f"in.{kind_in}", tmp_path / f"out.{kind}"
    source.touch()
    if kind_in == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS).schema.empty_table(), source)
    assert "0 texts" in embed(source, output)
    if kind == "npy":
        assert np.load(output).shape == (0, WIDTH)
    else:
        assert rows_of(output) == []
    if kind == kind_in == "parquet":
        assert pq.read_table(output).column_names == ["id", "text", "tags", "embedding"]


def test_standard_input(embed: Callable[..., str], engine: Engine, tmp_path: Path) -> None:
    embed("-", tmp_path / "out.npy", stdin="one\ntwo\n")
    assert np.array_equal(np.load(tmp_path / "out.npy"), engine.embed(["one", "two"]))
    embed("-", tmp_path / "out.jsonl", "--input-format", "jsonl", stdin='{"text": "one", "n": 1}')
    (row,) = rows_of(tmp_path / "out.jsonl")
    assert (row["text"], row["n"]) == ("one", 1)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--prompt", "find: "], {"prompt": "find: "}),
        (["--task", "query"], {"task": "query"}),
        (["--prompt-name", "topic"], {"prompt_name": "topic"}),
        (["--dimensions", "8"], {"dimensions": 8}),
        (["--dimensions", "8", "--no-normalize"], {"dimensions": 8, "normalize": False}),
        (["--normalize"], {"normalize": True}),
        (["--output-dtype", "float16"], {"output_dtype": "float16"}),
        (["--output-dtype", "binary"], {"output_dtype": "binary"}),
        (["--output-dtype", "ubinary"], {"output_dtype": "ubinary"}),
        (["--truncate", "start"], {"truncate": "start"}),
    ],
)
def test_a_flag_is_the_option_of_the_same_name(
    flags: list[str],
    options: dict[str, Any],
    embed: Callable[..., str],
    engine: Engine,
    tmp_path: Path,
) -> None:
    texts = [*TEXTS, " ".join(f"word{number}" for number in range(MAX_LENGTH))]
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    expected = engine.embed(texts, **options)
    assert not np.array_equal(expected, engine.embed(texts))
    for kind in ("npy", "jsonl", "parquet"):
        output = tmp_path / f"out.{kind}"
        embed(tmp_path / "in.txt", output, *flags)
        assert np.array_equal(vectors_of(output).astype(expected.dtype), expected)
    assert np.load(tmp_path / "out.npy").dtype == expected.dtype
    item = pq.read_schema(tmp_path / "out.parquet").field("embedding").type.value_type
    assert item == pa.from_numpy_dtype(expected.dtype)


def test_texts_cut_short_are_counted(embed: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("short\n" + "long " * 2 * MAX_LENGTH, encoding="utf-8")
    said = embed(tmp_path / "in.txt", tmp_path / "out.npy")
    assert "2 texts in" in said
    assert said.count("longer than") == 1  # and no word of the log
    assert (
        f"; 1 was longer than the {MAX_LENGTH} tokens the model reads and truncated: split such "
        "texts before, or try a higher --max-length\n"
    ) in said


def test_columns_are_chosen_and_left_out(
    embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    row = {"body": "one", "text": "two", "embedding": 3}
    (tmp_path / "in.jsonl").write_text(json.dumps(row), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    embed(tmp_path / "in.jsonl", output, "--column", "body", "--output-column", "vector")
    (found,) = rows_of(output)
    assert {**found, "vector": 0} == {**row, "vector": 0}
    assert np.array_equal(np.float32(found["vector"]), engine.embed("one"))
    embed(tmp_path / "in.jsonl", output, "--vectors-only")
    assert [list(row) for row in rows_of(output)] == [["embedding"]]
    assert np.array_equal(vectors_of(output)[0].astype(np.float32), engine.embed("two"))


def test_formats_can_be_named(
    embed: Callable[..., str], engine: Engine, inputs: dict[str, Path], tmp_path: Path
) -> None:
    source = inputs["jsonl"].rename(tmp_path / "in.data")
    embed(source, tmp_path / "out.data", "--input-format", "jsonl", "--output-format", "npy")
    with (tmp_path / "out.data").open("rb") as file:
        assert np.array_equal(np.load(file), engine.embed(TEXTS))


def test_the_bar_counts_rows_on_stderr(
    embed: Callable[..., str], inputs: dict[str, Path], tmp_path: Path
) -> None:
    assert "7/7" in embed(inputs["txt"], tmp_path / "out.npy", "--progress")
    assert "7/7" not in embed(inputs["txt"], tmp_path / "out.npy")


def test_an_output_that_is_there_is_replaced_only_by_a_whole_one(
    embed: Callable[..., str], prompted: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"precious")
    source = tmp_path / "long.txt"
    source.write_text("short\n" + "long " * 2 * MAX_LENGTH, encoding="utf-8")
    flags = ("--model", prompted, "--truncate", "error")
    assert refusal("embed", source, "-o", output, *flags).startswith("text 1: ")
    assert output.read_bytes() == b"precious"
    assert not list(tmp_path.glob("*.part*"))
    embed(inputs["txt"], output)
    assert len(np.load(output)) == len(TEXTS)


def test_the_advice_for_integers_is_good(
    embed: Callable[..., str], engine: Engine, inputs: dict[str, Path], tmp_path: Path
) -> None:
    embed(inputs["txt"], tmp_path / "out.npy")
    assert np.array_equal(
        quantize(np.load(tmp_path / "out.npy"), "int8"),
        engine.embed(TEXTS, output_dtype="int8"),
    )
