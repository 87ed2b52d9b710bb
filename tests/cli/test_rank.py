"""`millpond rank`, and what the other commands say of a reranker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import save_transformer
from command_line import ROWS, TEXTS, refusal, run
from families import ENCODER

from millpond import Engine
from multi_vector import save_multi_vector

pytestmark = pytest.mark.usefixtures("one_thread")

QUERY = "which stone"


def scoring(folder: Path, labels: int) -> Path:
    return save_transformer(
        folder,
        model="BertForSequenceClassification",
        config={**ENCODER, "num_labels": labels},
    )


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scoring(tmp_path_factory.mktemp("reranker"), 1)


@pytest.fixture(scope="module")
def engine(reranker: Path) -> Iterator[Engine]:
    with Engine(reranker, device="cpu", dtype="float32") as engine:
        yield engine


def rank(model: Path, source: object, *flags: object, stdin: str | None = None) -> str:
    flags = ("--model", model, "--dtype", "float32", *flags)
    result = run("rank", QUERY, source, *flags, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def rows(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.split("\n")[:-1]]


@pytest.mark.parametrize("name", ["txt", "jsonl", "parquet"])
def test_a_file_is_ranked_as_the_engine_does(
    reranker: Path, engine: Engine, inputs: dict[str, Path], name: str
) -> None:
    found = rows(rank(reranker, inputs[name], "--json"))
    expected = engine.rank(QUERY, TEXTS)
    assert [one["index"] for one in found] == [one.index for one in expected]
    assert [one["text"] for one in found] == [TEXTS[one.index] for one in expected]
    scores = np.float32([one["score"] for one in found])
    np.testing.assert_array_equal(scores, np.float32([one.score for one in expected]))


def test_a_person_reads_a_line_for_each_text(
    reranker: Path, engine: Engine, inputs: dict[str, Path]
) -> None:
    lines = rank(reranker, inputs["txt"]).split("\n")[:-1]
    for line, one in zip(lines, engine.rank(QUERY, TEXTS), strict=True):
        score, index, *words = line.split()
        assert np.float32(score) == np.float32(one.score)
        assert int(index) == one.index
        assert words == TEXTS[one.index].split()


def test_options_reach_the_call(reranker: Path, engine: Engine, inputs: dict[str, Path]) -> None:
    flags = ["--top-n", 2, "--activation", "none", "--prompt", "find: ", "--truncate", "document"]
    found = rows(rank(reranker, inputs["jsonl"], "--json", *flags))
    expected = engine.rank(QUERY, TEXTS, top_n=2, activation="none", prompt="find: ")
    assert [one["index"] for one in found] == [one.index for one in expected]
    assert np.float32(found[0]["score"]) == np.float32(expected[0].score)


def test_standard_input_and_another_column(reranker: Path, tmp_path: Path) -> None:
    assert len(rank(reranker, "-", stdin="a\nb\n").splitlines()) == 2
    assert rank(reranker, "-", stdin="") == ""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"body": row["text"]}) + "\n" for row in ROWS))
    assert len(rank(reranker, path, "--column", "body").splitlines()) == len(ROWS)


def test_what_cannot_be_ranked_is_one_line(
    reranker: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    model = ("--model", reranker)
    assert "no such file" in refusal("rank", QUERY, tmp_path / "none.txt", *model).lower()
    assert "--column" in refusal("rank", QUERY, inputs["jsonl"], *model, "--column", "body")
    assert "activation='odd'" in refusal(
        "rank", QUERY, inputs["txt"], *model, "--activation", "odd"
    )
    long = tmp_path / "long.txt"
    long.write_text("a\n" + "word " * 500)
    assert "text 1" in refusal("rank", QUERY, long, *model, "--truncate", "error")


def test_a_model_of_another_kind_names_the_command_for_it(
    reranker: Path, bare_bert: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    error = refusal("rank", QUERY, inputs["txt"], "--model", bare_bert)
    assert "call millpond embed" in error
    output = tmp_path / "out.npy"
    error = refusal("embed", inputs["txt"], "-o", output, "--model", reranker)
    assert "call millpond rank" in error
    classifier = scoring(tmp_path / "classifier", 3)
    assert "is a classifier" in refusal("rank", QUERY, inputs["txt"], "--model", classifier)
    assert not list(tmp_path.glob("out*"))


def test_info_shows_kind_and_labels(reranker: Path, bare_bert: Path) -> None:
    facts = dict(line.split(maxsplit=1) for line in run("info", reranker).stdout.splitlines())
    assert facts["kind"] == "score"
    assert facts["labels"] == "LABEL_0"
    assert facts["activation"] == "sigmoid"
    assert "dimensions" not in facts
    assert "similarity" not in facts
    assert json.loads(run("info", reranker, "--json").stdout)["labels"] == ["LABEL_0"]
    embedder = run("info", bare_bert).stdout
    assert "kind                   embed" in embedder
    assert "labels" not in embedder


def test_a_multi_vector_model_ranks_too(inputs: dict[str, Path], tmp_path: Path) -> None:
    late = save_multi_vector(tmp_path)
    found = rows(rank(late, inputs["txt"], "--json", "--top-n", 3))
    with Engine(late, device="cpu", dtype="float32") as engine:
        expected = engine.rank(QUERY, TEXTS, top_n=3)
    assert [one["index"] for one in found] == [one.index for one in expected]
    facts = json.loads(run("info", late, "--json").stdout)
    assert (facts["kind"], facts["similarity"]) == ("multi_vector", "maxsim")
    told = refusal("embed", inputs["txt"], "-o", "-", "--model", late)
    assert "millpond rank" in told
