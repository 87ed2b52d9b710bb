"""Sources give the same chunks however a file is divided, and skip what they are told to."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond.cli.files.formats import FileFormats

TEXTS = [f"text {number}" for number in range(23)]
SIZE = 5


def layout(path: Path, output: str) -> FileFormats:
    return FileFormats.of(
        path,
        path.with_name(output),
        input_format=None,
        output_format=None,
        column="text",
        output_column="embedding",
        vectors_only=False,
    )


@pytest.fixture(params=["in.txt", "in.jsonl", "in.parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    if path.suffix == ".parquet":
        # Row groups of 7, so that chunks of 5 stand across their borders.
        pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=7)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    else:
        path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


@pytest.mark.parametrize("output", ["out.npy", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("skip", [0, SIZE, 2 * SIZE, 4 * SIZE, 5 * SIZE])
def test_chunks_are_whole_and_begin_where_they_are_told(skip: int, output: str, path: Path) -> None:
    chunks = list(layout(path, output).source(path).chunks(SIZE, skip=skip))
    assert [chunk.texts for chunk in chunks] == [
        TEXTS[first : first + SIZE] for first in range(skip, len(TEXTS), SIZE)
    ]
    for chunk in chunks:
        if output == "out.npy":
            assert chunk.columns is None
        else:
            records = (
                chunk.columns if isinstance(chunk.columns, list) else chunk.columns.to_pylist()
            )
            assert records == [{"text": text} for text in chunk.texts]
