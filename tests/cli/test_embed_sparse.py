"""`millpond embed --output-kind sparse`: sparse vectors in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import ROWS, TEXTS, embed_as, refusal, rows_of
from sparse_models import save_splade

from millpond import Engine, SparseVectors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SPARSE = ("--output-kind", "sparse")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_splade(tmp_path_factory.mktemp("sparse"))


def expected(model: Path, **options: Any) -> SparseVectors:
    with Engine(str(model), dtype="float32", device="cpu", batch_invariant=True) as engine:
        found: SparseVectors = engine.embed_sparse(TEXTS, **options)
        return found


def embed(source: Path, output: Path, model: Path, *flags: object) -> None:
    result = embed_as("sparse", source, output, model, *flags)
    assert result.exit_code == 0, result.stderr


def assert_is(output: Path, vectors: SparseVectors) -> None:
    rows = rows_of(output)
    assert [{k: row[k] for k in row if k != "embedding"} for row in rows] == ROWS
    for row, vector in zip(rows, vectors, strict=True):
        assert row["embedding"]["indices"] == vector.indices.tolist()
        values = np.array(row["embedding"]["values"], dtype=np.float32)
        np.testing.assert_array_equal(values, vector.values)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_indices_and_values_of_each_row(
    suffix: str, source: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / f"out.{suffix}"
    embed(source, output, model, "--task", "document", "--chunk-size", 3)
    assert_is(output, expected(model, task="document"))
    if suffix == "parquet":
        kind = str(pq.read_schema(output).field("embedding").type)
        assert kind == "struct<indices: list<element: int32>, values: list<element: float>>"


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    flags = ("--max-active-dims", 4, "--min-weight", 0.05, "--chunk-size", 2)
    embed(source, whole, model, *flags)
    assert_is(whole, expected(model, max_active_dims=4, min_weight=0.05))
    iterate = Engine.embed_sparse_iter

    def interrupted(engine: Engine, *given: Any, **options: Any) -> Any:
        yield next(iter(iterate(engine, *given, **options)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "embed_sparse_iter", interrupted)
        assert embed_as("sparse", source, output, model, *flags).exit_code == 130
    embed(source, output, model, *flags, "--resume")
    assert output.read_bytes() == whole.read_bytes()


def test_what_cannot_be_meant_is_refused(source: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    call = ("embed", source, "-o", output, "-m", model)
    assert ".parquet or .jsonl" in refusal(*call[:3], tmp_path / "out.npy", *call[4:], *SPARSE)
    for flag in (("--dimensions", 3), ("--dimensions", 1), ("--no-normalize",)):
        assert f"{flag[0].replace('no-', '')} is not for" in refusal(*call, *SPARSE, *flag)
    assert "--max-active-dims is not for" in refusal(*call, "--max-active-dims", 3)
    assert "--output-kind sparse" in refusal(*call)
    dense = ("embed", source, "-o", output)
    assert "no sparse vectors" in refusal(*dense, *SPARSE)
