"""Ray for real, on two cores: datasets with vectors, actors that die, and the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from command_line import refusal, run
from ray_cluster import cluster, kill, processes
from rerankers import save_reranker

from millpond import Engine, InvalidOption
from millpond.ray import embed, rank, score

pytestmark = pytest.mark.slow

ACTORS: Any = {"actors": 1, "gpus": 0, "dtype": "float32"}
TEXTS = [f"the text of row {row}, and some of it" for row in range(600)]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with cluster():
        yield


@pytest.fixture(scope="module")
def bert(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("bert"))


def table_of(dataset: Any) -> Any:
    return pa.concat_tables(ray.get(dataset.to_arrow_refs()))


def vectors_of(table: Any) -> dict[int, Any]:
    column = table.column("embedding").to_pylist()
    vectors = [None if one is None else np.float32(one) for one in column]
    return dict(zip(table.column("id").to_pylist(), vectors, strict=True))


def expected(bert: str, texts: list[str]) -> Any:
    with Engine(bert, device="cpu", dtype="float32") as engine:
        return engine.embed(texts)


def test_vectors_are_bit_for_bit_the_driver_s_own(bert: str, tmp_path: Path) -> None:
    texts: list[str | None] = [*TEXTS, None]
    rows = pa.table({"id": range(len(texts)), "text": texts})
    dataset = ray.data.from_arrow(rows).repartition(5)
    lazy = embed(dataset, bert, batch_rows=100, **ACTORS)
    assert processes("MapWorker") == []  # nothing has run
    lazy.write_parquet(str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out")  # without Ray's types
    assert table.schema.field("embedding").type.list_size == 64
    assert table.schema.field("text").type == pa.string()
    found = vectors_of(table)
    assert sorted(found) == list(range(len(texts)))
    assert found.pop(len(TEXTS)) is None
    assert np.array_equal(
        np.stack([found[row] for row in range(len(TEXTS))]), expected(bert, TEXTS)
    )
    errors = [row for row in table.to_pylist() if row["embedding_error"] is not None]
    assert [row["id"] for row in errors] == [len(TEXTS)]


def test_a_killed_actor_s_rows_are_embedded_again(bert: str) -> None:
    texts = TEXTS * 10
    rows = pa.table({"id": range(len(texts)), "text": texts})
    dataset = embed(ray.data.from_arrow(rows).repartition(30), bert, batch_rows=200, **ACTORS)
    batches = iter(dataset.iter_batches(batch_format="pyarrow", batch_size=None))
    tables = [next(batches)]
    (actor,) = processes("MapWorker")
    kill(actor)
    tables += list(batches)
    found = vectors_of(pa.concat_tables(tables))
    assert sum(map(len, tables)) == len(found) == len(texts)
    assert np.array_equal(
        np.stack([found[row] for row in range(len(texts))]), expected(bert, texts)
    )


def test_pairs_are_scored_and_lists_ranked(tmp_path: Path) -> None:
    model = str(save_reranker("bert", tmp_path))
    documents = ["the stone", "grinds", "the grain"]
    rows = [{"query": "grain", "document": text, "documents": documents} for text in documents]
    dataset = ray.data.from_items(rows)
    scored, ranked = score(dataset, model, **ACTORS), rank(dataset, model, top_n=2, **ACTORS)
    with Engine(model, device="cpu", dtype="float32") as engine:
        scores = engine.score([("grain", text) for text in documents])
        best = [(each.index, each.score) for each in engine.rank("grain", documents, top_n=2)]
    assert np.array_equal(table_of(scored).column("score").to_numpy(), scores)
    for ranking in table_of(ranked).column("ranking").to_pylist():
        assert [(each["index"], each["score"]) for each in ranking] == best


def test_what_cannot_be_meant_is_refused_at_once(bert: str) -> None:
    dataset = ray.data.from_arrow(pa.table({"text": ["a"], "embedding": [1]}))
    for message, options in {
        "no column 'body'": {"column": "body"},
        "two columns 'embedding'": {},
        "on_error='skip'": {"on_error": "skip"},
        "batch_rows=0": {"batch_rows": 0},
        "all vectors at once": {"output_dtype": "int8"},
        "unknown option dtyp": {"dtyp": "float32"},
        "actors=": {"actors": (2, 1)},
        "gpus=": {"gpus": -1},
    }.items():
        with pytest.raises(InvalidOption, match=message):
            embed(dataset, bert, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="a Ray dataset, not list"):
        embed(["a"], bert)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="top_n=0"):
        rank(dataset, bert, top_n=0)


def test_actors_that_no_machine_can_hold_are_told_of(
    bert: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embed(ray.data.from_items([{"text": "a"}]), bert, gpus=8)
    (record,) = (record for record in caplog.records if record.name == "millpond.ray")
    assert "an actor needs 8 GPUs and no machine has more than 0 now" in record.getMessage()
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in" / "a.parquet")
    flags = ("-o", tmp_path / "out", "-m", bert, "--ray", "local", "--cpus-per-actor", 3)
    message = refusal("embed", tmp_path / "in", *flags)
    assert message.startswith("an actor needs 3 CPUs and no machine has more than 2")


def test_files_are_embedded_as_without_a_cluster(bert: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for part in range(3):
        pq.write_table(pa.table({"text": TEXTS[part::3]}), folder / f"{part}.parquet")
    model = ("-m", bert, "--dtype", "float32")
    flags = ("--ray", "auto", "--actors", 1, "--gpus-per-actor", 0, "--on-error", "raise")
    result = run("embed", f"{folder}/*.parquet", "-o", tmp_path / "out", *flags, *model)
    assert result.exit_code == 0, result.output
    assert "600 rows of 3 files" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0.parquet",
        "1.parquet",
        "2.parquet",
        "_millpond.json",
    ]
    for part in range(3):
        alone = tmp_path / f"{part}.parquet"
        assert run("embed", folder / alone.name, "-o", alone, *model).exit_code == 0
        assert pq.read_table(alone).equals(pq.read_table(tmp_path / "out" / alone.name))


def test_the_driver_loads_no_torch() -> None:
    program = (
        "import sys, millpond.ray.data, millpond.ray.parts; print('torch' in sys.modules); "
        "from millpond.ray import embed, deployment; print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "False"]
