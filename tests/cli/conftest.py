"""The same texts in every format, and a small checkpoint that has prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import ROWS, TEXTS, run, with_settings

from millpond import Engine


@pytest.fixture
def prompted(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "find: ", "topic": "about: "}
    copy = tmp_path_factory.mktemp("prompted") / "bert"
    return with_settings(checkpoint("bert"), copy, prompts=prompts)


@pytest.fixture
def engine(prompted: Path) -> Iterator[Engine]:
    with Engine(prompted, device="cpu", dtype="float32") as engine:
        yield engine


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """The same texts in every format."""
    paths = {name: tmp_path / f"in.{name}" for name in ("txt", "jsonl", "parquet")}
    paths["txt"].write_text("\n".join(TEXTS), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    paths["jsonl"].write_text("\n".join([*lines, ""]), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), paths["parquet"], row_group_size=2)
    return paths


@pytest.fixture
def source(inputs: dict[str, Path]) -> Path:
    """The texts beside other columns."""
    return inputs["jsonl"]


@pytest.fixture
def embed(prompted: Path) -> Callable[..., str]:
    def call(source: object, output: Path, *flags: object, stdin: str | None = None) -> str:
        flags = ("--model", prompted, "--dtype", "float32", "--chunk-size", 3, *flags)
        result = run("embed", source, "-o", output, *flags, stdin=stdin)
        assert (result.exit_code, result.stdout) == (0, ""), result.output
        return result.stderr

    return call
