"""What an actor makes of a table, without Ray around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rerankers import save_reranker
from sparse_models import save_splade

from millpond import Engine
from millpond.errors import (
    EngineFailed,
    InvalidOption,
    ModelNotFound,
    TextTooLong,
    UnknownTask,
    UnsupportedCall,
)
from millpond.ray import batches
from millpond.ray.batches import (
    Columns,
    EmbedBatch,
    EngineBatch,
    RankBatch,
    ScoreBatch,
    SparseBatch,
)

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: Any = {"device": "cpu", "dtype": "float32"}
TEXTS = ["the stone", "", "grinds the grain", "the stone"]


def columns(*read: str, output: str = "out", on_error: Any = "report") -> Columns:
    return Columns(read=read, output=output, error=f"{output}_error", on_error=on_error)


@pytest.fixture(scope="module")
def bert(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("bert"))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_reranker("bert", tmp_path_factory.mktemp("reranker")))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_reranker("bert", tmp_path_factory.mktemp("classifier"), labels=3))


@pytest.fixture(scope="module")
def engine(bert: str) -> Iterator[Engine]:
    with Engine(bert, **OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def scorer(reranker: str) -> Iterator[Engine]:
    with Engine(reranker, **OPTIONS) as engine:
        yield engine


def matrix(column: Any) -> Any:
    """A fixed-size list without nulls as `[n, width]`."""
    column = column.combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def test_vectors_are_the_engine_s_as_lists_of_one_length(bert: str, engine: Engine) -> None:
    table = pa.table({"id": range(4), "text": TEXTS})
    found = EmbedBatch(bert, OPTIONS, columns("text"), {})(table)
    assert found.column_names == ["id", "text", "out", "out_error"]
    assert found.schema.field("out").type == pa.list_(pa.float32(), engine.info().dimension)
    assert np.array_equal(matrix(found.column("out")), engine.embed(TEXTS))
    assert found.column("out_error").null_count == 4
    assert found.select(["id", "text"]).equals(table)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"output_dtype": "float16", "dimensions": 8}, pa.list_(pa.float16(), 8)),
        ({"output_dtype": "ubinary", "dimensions": 16}, pa.list_(pa.uint8(), 2)),
        ({"prompt": "find: "}, None),
    ],
)
def test_the_options_of_a_call_are_those_of_embed(
    options: Any, kind: Any, bert: str, engine: Engine
) -> None:
    found = EmbedBatch(bert, OPTIONS, columns("text"), options)(pa.table({"text": TEXTS}))
    assert kind in (None, found.schema.field("out").type)
    assert np.array_equal(matrix(found.column("out")), engine.embed(TEXTS, **options))


def test_lists_of_token_ids_are_texts(bert: str, engine: Engine) -> None:
    ids = engine.tokenize(TEXTS)
    found = EmbedBatch(bert, OPTIONS, columns("ids"), {})(pa.table({"ids": ids}))
    assert np.array_equal(matrix(found.column("out")), engine.embed(TEXTS))


def test_no_rows_have_the_same_columns(bert: str, reranker: str) -> None:
    batch = EmbedBatch(bert, OPTIONS, columns("text"), {})
    some, none = batch(pa.table({"text": TEXTS})), batch(pa.table({"text": pa.array([], "str")}))
    assert (none.num_rows, none.schema) == (0, some.schema)
    scores = ScoreBatch(reranker, OPTIONS, columns("q", "d"), {})
    some = scores(pa.table({"q": TEXTS, "d": TEXTS}))
    none = scores(pa.table({"q": pa.array([], "str"), "d": pa.array([], "str")}))
    assert (none.num_rows, none.schema) == (0, some.schema)


POISONED = ["good", None, "too long " * 400, "also good"]


def test_a_row_without_a_vector_says_why_and_costs_no_other(bert: str, engine: Engine) -> None:
    batch = EmbedBatch(bert, OPTIONS, columns("text"), {"truncate": "error"})
    found = batch(pa.table({"text": POISONED}))
    vectors = found.column("out").to_pylist()
    assert [vector is None for vector in vectors] == [False, True, True, False]
    assert np.array_equal(np.float32([vectors[0], vectors[3]]), engine.embed(["good", "also good"]))
    errors = found.column("out_error").to_pylist()
    assert errors[0] is None
    assert errors[1].startswith("InvalidText: expected a string")
    assert errors[2].startswith("TextTooLong: ")
    assert "text 2" not in errors[2]


def test_it_is_dropped_on_request(bert: str) -> None:
    batch = EmbedBatch(bert, OPTIONS, columns("text", on_error="drop"), {"truncate": "error"})
    found = batch(pa.table({"id": range(4), "text": POISONED}))
    assert found.column_names == ["id", "text", "out"]
    assert found.column("id").to_pylist() == [0, 3]


def test_or_raised(bert: str) -> None:
    batch = EmbedBatch(bert, OPTIONS, columns("text", on_error="raise"), {"truncate": "error"})
    with pytest.raises(TextTooLong) as raised:
        batch(pa.table({"text": ["good", "too long " * 400]}))
    assert raised.value.index == 1


def test_a_string_that_is_not_utf_8_is_no_text(bert: str, engine: Engine) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    broken = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    found = EmbedBatch(bert, OPTIONS, columns("text"), {})(pa.table({"text": broken}))
    vectors = found.column("out").to_pylist()
    assert [vector is None for vector in vectors] == [False, True, False]
    assert np.array_equal(np.float32(vectors[2]), engine.embed("fine"))


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        ("/no/such/model", {}, ModelNotFound),
        (None, {"task": "nonsense"}, UnknownTask),
        (None, {"dimensions": 10**6}, InvalidOption),
    ],
)
def test_what_is_wrong_with_all_rows_is_raised_by_the_call(
    model: str | None, options: Any, error: type[Exception], bert: str
) -> None:
    batch = EmbedBatch(model or bert, OPTIONS, columns("text"), options)
    for _ in range(2):
        with pytest.raises(error):
            batch(pa.table({"text": TEXTS}))


def test_a_reranker_embeds_nothing(reranker: str) -> None:
    batch = EmbedBatch(reranker, OPTIONS, columns("text"), {})
    with pytest.raises(UnsupportedCall):
        batch(pa.table({"text": TEXTS}))


def test_columns_are_there_once(bert: str) -> None:
    batch = EmbedBatch(bert, OPTIONS, columns("text"), {})
    with pytest.raises(InvalidOption, match="no column 'text', only 'body'"):
        batch(pa.table({"body": TEXTS}))
    with pytest.raises(InvalidOption, match="two columns 'out'"):
        batch(pa.table({"text": TEXTS, "out": TEXTS}))


def test_sparse_vectors_are_the_engine_s(tmp_path: Path) -> None:
    model = str(save_splade(tmp_path))
    options: Any = {"max_active_dims": 5}
    batch = SparseBatch(model, OPTIONS, columns("text"), options)
    found = batch(pa.table({"text": ["the stone", None, "grain"]}))
    with Engine(model, **OPTIONS) as engine:
        expected = engine.embed_sparse(["the stone", "grain"], **options)
    first, failed, last = found.column("out").to_pylist()
    assert failed is None
    for got, (indices, values) in zip((first, last), expected, strict=True):
        assert got["indices"] == indices.tolist()
        assert np.array_equal(np.float32(got["values"]), values)
    assert found.column("out_error").to_pylist()[1].startswith("InvalidText")
    none = batch(pa.table({"text": pa.array([], "str")}))
    assert (none.num_rows, none.schema) == (0, found.schema)


def test_scores_are_the_engine_s(reranker: str, scorer: Engine) -> None:
    queries, documents = ["grain", None, "stone"], ["the stone", "the grain", 3]
    table = pa.table({"q": queries, "d": pa.array([*documents[:2], None])})
    found = ScoreBatch(reranker, OPTIONS, columns("q", "d"), {"activation": "none"})(table)
    assert found.schema.field("out").type == pa.float32()
    scores = found.column("out").to_pylist()
    assert scores[1:] == [None, None]
    expected = scorer.score([("grain", "the stone")], activation="none")
    assert np.float32(scores[0]) == expected[0]
    assert found.column("out_error").to_pylist() == [
        None,
        "InvalidText: the query is NoneType, not a string",
        "InvalidText: the document is NoneType, not a string",
    ]


def test_several_labels_are_a_list(classifier: str) -> None:
    table = pa.table({"q": ["a", None], "d": ["b", "c"]})
    found = ScoreBatch(classifier, OPTIONS, columns("q", "d"), {})(table)
    assert found.schema.field("out").type == pa.list_(pa.float32(), 3)
    with Engine(classifier, **OPTIONS) as engine:
        expected = engine.score([("a", "b")])
    scores = found.column("out").to_pylist()
    assert np.array_equal(np.float32([scores[0]]), expected)
    assert scores[1] is None


def test_rankings_are_the_engine_s(reranker: str, scorer: Engine) -> None:
    lists = [["the stone", "grain", "the stone"], [], ["one"], None, ["good", None]]
    queries = ["grain", "grain", None, "grain", "grain"]
    table = pa.table({"q": queries, "d": pa.array(lists, pa.list_(pa.string()))})
    found = RankBatch(reranker, OPTIONS, columns("q", "d"), {}, top_n=2)(table)
    rankings = found.column("out").to_pylist()
    best = scorer.rank("grain", lists[0], top_n=2)
    assert [(each["index"], each["score"]) for each in rankings[0]] == [
        (each.index, each.score) for each in best
    ]
    assert rankings[1:] == [[], None, None, None]
    assert [error is None for error in found.column("out_error").to_pylist()] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_classifier_ranks_nothing(classifier: str) -> None:
    with pytest.raises(UnsupportedCall):
        RankBatch(classifier, OPTIONS, columns("q", "d"), {})(pa.table({"q": ["a"], "d": [["b"]]}))


class Exited(BaseException):
    """Instead of the end of the process."""


def test_an_engine_that_fails_after_it_worked_ends_its_process(
    bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(batches.os, "_exit", leave)
    working = EmbedBatch(bert, OPTIONS, columns("text"), {})
    working(pa.table({"text": TEXTS}))
    _fail(working)
    with pytest.raises(Exited):
        working(pa.table({"text": TEXTS}))


def test_an_engine_that_fails_at_once_is_an_error(
    bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches.os, "_exit", lambda status: pytest.fail("it ended its process"))
    broken = EmbedBatch(bert, OPTIONS, columns("text"), {})
    _fail(broken)
    with pytest.raises(EngineFailed):
        broken(pa.table({"text": TEXTS}))


def _fail(batch: EngineBatch) -> None:
    batch._engine._instance.core.fail(RuntimeError("the device is gone"))
