"""`millpond embed --output-kind tokens`: a vector for each token of each text, in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import ROWS, TEXTS, embed_as, refusal, rows_of

from millpond import Engine, TokenVectors
from multi_vector import DIMENSION, save_bge_m3, save_multi_vector

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TOKENS = ("--output-kind", "tokens")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_multi_vector(tmp_path_factory.mktemp("multi_vector"))


def expected(model: Path, **options: Any) -> TokenVectors:
    with Engine(str(model), dtype="float32", device="cpu", batch_invariant=True) as engine:
        found: TokenVectors = engine.embed_tokens(TEXTS, **options)
        return found


def embed(source: Path, output: Path, model: Path, *flags: object) -> None:
    result = embed_as("tokens", source, output, model, *flags)
    assert result.exit_code == 0, result.stderr


def assert_is(output: Path, vectors: TokenVectors) -> None:
    rows = rows_of(output)
    assert [{k: row[k] for k in row if k != "embedding"} for row in rows] == ROWS
    for row, matrix in zip(rows, vectors, strict=True):
        found = np.array(row["embedding"], dtype=np.float32).reshape(-1, vectors.dimension)
        np.testing.assert_array_equal(found, matrix)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("task", ["query", "document"])
def test_the_vectors_of_each_row(
    suffix: str, task: Any, source: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / f"out.{suffix}"
    embed(source, output, model, "--task", task, "--chunk-size", 3)
    assert_is(output, expected(model, task=task))
    if suffix == "parquet":
        kind = str(pq.read_schema(output).field("embedding").type)
        assert kind == f"list<element: fixed_size_list<element: float>[{DIMENSION}]>"


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    flags = ("--pool-factor", 2, "--dimensions", 8, "--chunk-size", 2)
    embed(source, whole, model, *flags)
    assert_is(whole, expected(model, pool_factor=2, dimensions=8))
    iterate = Engine.embed_tokens_iter

    def interrupted(engine: Engine, *given: Any, **options: Any) -> Any:
        yield next(iter(iterate(engine, *given, **options)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "embed_tokens_iter", interrupted)
        assert embed_as("tokens", source, output, model, *flags).exit_code == 130
    embed(source, output, model, *flags, "--resume")
    assert output.read_bytes() == whole.read_bytes()


def test_of_bge_m3_too(source: Path, tmp_path: Path) -> None:
    model, output = save_bge_m3(tmp_path / "m3"), tmp_path / "out.parquet"
    embed(source, output, model)
    assert_is(output, expected(model))


def test_what_cannot_be_meant_is_refused(source: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    call = ("embed", source, "-o", output, "-m", model)
    assert ".parquet or .jsonl" in refusal(*call[:3], tmp_path / "out.npy", *call[4:], *TOKENS)
    assert "--max-active-dims is not for" in refusal(*call, *TOKENS, "--max-active-dims", 3)
    assert "--output-dtype is not for" in refusal(*call, *TOKENS, "--output-dtype", "float16")
    assert "--pool-factor is not for" in refusal(*call, "--pool-factor", 2)
    assert "--output-kind tokens" in refusal(*call)
    dense = ("embed", source, "-o", output)
    assert "no token vectors" in refusal(*dense, *TOKENS)
