"""How calls and options reach the engine, on an engine whose runner is a fake."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DIMENSION, FakeRunner, start_engine, vectors_for
from pydantic import ValidationError

from langchain_millpond import MillpondEmbeddings
from millpond import (
    Engine,
    EngineClosed,
    InvalidDimensions,
    InvalidOption,
    InvalidText,
    ModelNotFound,
    NonFiniteVector,
    TextsFailed,
    TextTooLong,
)

TEXTS = ["one text", "another", "", "one text"]
Embed = Callable[[MillpondEmbeddings, list[str]], list[list[float]]]


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner(max_length=6)


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    """Its checkpoint saves "ask: " for queries and nothing for documents."""
    engine = start_engine(runner)
    yield engine
    runner.let()
    engine.close(drain=False)


@pytest.fixture
def embeddings(engine: Engine) -> MillpondEmbeddings:
    return MillpondEmbeddings(engine=engine)


def sync(embeddings: MillpondEmbeddings, texts: list[str]) -> list[list[float]]:
    return embeddings.embed_documents(texts)


def awaited(embeddings: MillpondEmbeddings, texts: list[str]) -> list[list[float]]:
    return asyncio.run(embeddings.aembed_documents(texts))


def one_by_one(embeddings: MillpondEmbeddings, texts: list[str]) -> list[list[float]]:
    return [embeddings.embed_query(text) for text in texts]


def gathered(embeddings: MillpondEmbeddings, texts: list[str]) -> list[list[float]]:
    async def ask() -> list[list[float]]:
        return await asyncio.gather(*map(embeddings.aembed_query, texts))

    return asyncio.run(ask())


DOCUMENTS = [sync, awaited]
QUERIES = [one_by_one, gathered]


# Vectors.


@pytest.mark.parametrize("embed", [*DOCUMENTS, *QUERIES])
def test_vectors_are_lists_of_python_floats(embed: Embed, embeddings: MillpondEmbeddings) -> None:
    vectors = embed(embeddings, TEXTS)
    assert type(vectors) is list
    assert {type(vector) for vector in vectors} == {list}
    assert {type(value) for vector in vectors for value in vector} == {float}


@pytest.mark.parametrize("embed", DOCUMENTS)
@pytest.mark.parametrize("count", [0, 1, 64, 200])
def test_vector_i_is_of_document_i(
    embed: Embed, count: int, embeddings: MillpondEmbeddings
) -> None:
    texts = [f"text {number}" for number in range(count)]
    assert embed(embeddings, texts) == vectors_for(texts).tolist()


@pytest.mark.parametrize("embed", DOCUMENTS)
def test_any_iterable_of_strings_will_do(embed: Any, embeddings: MillpondEmbeddings) -> None:
    assert embed(embeddings, iter(TEXTS)) == vectors_for(TEXTS).tolist()


@pytest.mark.parametrize("embed", QUERIES)
def test_queries_get_the_saved_prompt(embed: Embed, embeddings: MillpondEmbeddings) -> None:
    assert embed(embeddings, TEXTS) == vectors_for(TEXTS, prompt="ask: ").tolist()


@pytest.mark.parametrize(
    ("embed", "option"),
    [*((embed, "document_prompt") for embed in DOCUMENTS), *((e, "query_prompt") for e in QUERIES)],
)
@pytest.mark.parametrize("prompt", ["", "find: "])
def test_a_prompt_given_wins_over_the_saved_one(
    embed: Embed, option: str, prompt: str, engine: Engine
) -> None:
    embeddings = MillpondEmbeddings(engine=engine, **{option: prompt})
    assert embed(embeddings, TEXTS) == vectors_for(TEXTS, prompt=prompt).tolist()


@pytest.mark.parametrize(
    ("embed", "priority"),
    [*((embed, "bulk") for embed in DOCUMENTS), *((embed, "interactive") for embed in QUERIES)],
)
def test_queries_are_interactive_and_documents_bulk(
    embed: Embed, priority: str, embeddings: MillpondEmbeddings, runner: FakeRunner
) -> None:
    for texts in (["alone"], TEXTS):
        embed(embeddings, texts)
    assert {one for batch in runner.batches for one in batch.priorities} == {priority}


@pytest.mark.parametrize("embed", [*DOCUMENTS, *QUERIES])
def test_dimensions_are_cut_and_unit_length_restored(embed: Embed, engine: Engine) -> None:
    vectors = np.array(embed(MillpondEmbeddings(engine=engine, dimensions=3), TEXTS))
    assert vectors.shape == (len(TEXTS), 3)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


@pytest.mark.parametrize("embed", [*DOCUMENTS, *QUERIES])
def test_normalize_gives_unit_length(embed: Embed, engine: Engine) -> None:
    vectors = embed(MillpondEmbeddings(engine=engine, normalize=True), TEXTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert not np.allclose(
        np.linalg.norm(embed(MillpondEmbeddings(engine=engine), TEXTS), axis=1), 1
    )


# Texts that are too long, and texts that fail.


CUT = "a b c d e f g"


@pytest.mark.parametrize("embed", DOCUMENTS)
def test_cutting_documents_is_said_with_what_to_do_and_again_when_the_count_has_doubled(
    embed: Callable[..., Any], embeddings: MillpondEmbeddings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "millpond"):
        embed(embeddings, ["short", CUT, f"{CUT} h"])
        said = [record.getMessage() for record in caplog.records]
        most = embeddings.engine.info().max_length
        assert most is not None
        assert said == [
            f"2 of 3 texts were longer than the {most} tokens the model reads and lost a part: "
            f"give your text splitter a chunk_size of {3 * most} characters, or of {most} where it "
            "counts the model's tokens"
        ]
        embed(embeddings, [CUT, "short"])
        embed(embeddings, ["short"])
        assert len(caplog.records) == 1
        embed(embeddings, [CUT])
        assert caplog.records[-1].getMessage().startswith("4 of 7 texts were longer")
        embeddings.embed_query(CUT)  # which has no splitter
        assert caplog.records[-1].getMessage().startswith("1 of 1 texts were longer")
    assert len(caplog.records) == 3


def test_texts_are_cut_where_asked(engine: Engine) -> None:
    text = "a b c d e f g"
    start = MillpondEmbeddings(engine=engine, truncate="start", query_prompt="")
    end = MillpondEmbeddings(engine=engine, truncate="end", query_prompt="")
    assert start.embed_query(text) == vectors_for([text[2:]])[0].tolist()
    assert end.embed_query(text) == vectors_for([text[:-2]])[0].tolist()


@pytest.mark.parametrize("embed", DOCUMENTS)
def test_a_text_refused_for_its_length_is_named_by_its_index(embed: Embed, engine: Engine) -> None:
    embeddings = MillpondEmbeddings(engine=engine, truncate="error")
    with pytest.raises(TextTooLong, match="text 2") as caught:
        embed(embeddings, ["short", "short", "a b c d e f g"])
    assert caught.value.index == 2


@pytest.mark.parametrize("embed", DOCUMENTS)
def test_a_text_that_fails_is_named_by_its_index(embed: Embed) -> None:
    with start_engine(FakeRunner(not_finite_on={"bad"})) as engine:
        embeddings = MillpondEmbeddings(engine=engine)
        with pytest.raises(NonFiniteVector) as caught:
            embed(embeddings, ["good", "bad", "good"])
        assert caught.value.index == 1
        with pytest.raises(TextsFailed) as several:
            embed(embeddings, ["bad one", "good", "bad"])
        assert list(several.value.errors) == [0, 2]
        assert embed(embeddings, ["good"]) == vectors_for(["good"]).tolist()


@pytest.mark.parametrize("embed", DOCUMENTS)
@pytest.mark.parametrize(
    ("texts", "index"),
    [
        ("text", 0),
        (b"text", 0),
        ([1, 2], 0),
        ([["text"]], 0),
        ([None], 0),
        (["text", 3], 1),
        (None, 0),
    ],
)
def test_what_is_no_text_is_named_by_its_index(
    embed: Any, texts: Any, index: int, embeddings: MillpondEmbeddings
) -> None:
    with pytest.raises(InvalidText) as caught:
        embed(embeddings, texts)
    assert caught.value.index == index


@pytest.mark.parametrize("query", [None, 3, ["text"], b"text"])
def test_a_query_is_a_string(query: Any, embeddings: MillpondEmbeddings) -> None:
    with pytest.raises(InvalidText):
        embeddings.embed_query(query)
    with pytest.raises(InvalidText):
        asyncio.run(embeddings.aembed_query(query))


# Event loops.


@pytest.mark.parametrize("name", ["aembed_query", "aembed_documents"])
def test_async_calls_use_no_executor_and_leave_the_loop_free(
    name: str, embeddings: MillpondEmbeddings, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a thread was asked for")

    async def ask() -> int:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "run_in_executor", refuse)
        call = getattr(embeddings, name)
        waiting = [asyncio.ensure_future(call("q" if "query" in name else ["q"])) for _ in range(8)]
        turns = 0
        while turns < 100:  # the runner gives nothing back yet, and the loop turns
            await asyncio.sleep(0)
            turns += 1
        assert not any(task.done() for task in waiting)
        runner.let()
        return len(await asyncio.gather(*waiting))

    runner.hold()
    threads = threading.active_count()
    assert asyncio.run(ask()) == 8
    assert threading.active_count() == threads


def test_a_cancelled_call_is_not_run(embeddings: MillpondEmbeddings, runner: FakeRunner) -> None:
    async def cancel_one() -> None:
        waiting = asyncio.ensure_future(embeddings.aembed_documents(["lost", "gone"]))
        await asyncio.sleep(0)  # let it hand its texts in
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    runner.hold()
    first = embeddings.engine.submit("first")
    runner.wait_for_batches(1)
    asyncio.run(cancel_one())
    runner.let()
    first.result()
    embeddings.embed_documents(["after"])
    assert runner.ran == ["first", "after"]


def test_sync_calls_work_inside_a_running_loop(embeddings: MillpondEmbeddings) -> None:
    async def cell() -> list[float]:
        return embeddings.embed_query("text")

    assert asyncio.run(cell()) == vectors_for(["text"], prompt="ask: ")[0].tolist()


def test_one_object_serves_loops_of_several_threads(embeddings: MillpondEmbeddings) -> None:
    results: list[list[list[float]]] = []
    threads = [
        threading.Thread(target=lambda: results.append(gathered(embeddings, TEXTS)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [vectors_for(TEXTS, prompt="ask: ").tolist()] * 4


# Options.


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dimensions": 0}, InvalidDimensions),
        ({"dimensions": DIMENSION + 1}, InvalidDimensions),
        ({"device": "cpu"}, InvalidOption),
        ({"model": "another"}, InvalidOption),
        ({"model_name": "another"}, InvalidOption),
        ({"cache_folder": "models"}, InvalidOption),
        ({"truncate": "middle"}, ValidationError),
        ({"engine_options": {"warmup": True}}, InvalidOption),
        ({"normalise": True}, InvalidOption),
        ({"batch_size": 32}, InvalidOption),
    ],
)
def test_bad_options_beside_an_engine_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], engine: Engine
) -> None:
    with pytest.raises(error):
        MillpondEmbeddings(engine=engine, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "qpu"}, InvalidOption),
        ({"max_length": 0}, InvalidOption),
        ({"engine_options": {"max_query_wait_ms": 0}}, InvalidOption),
        ({"engine_options": {"pooling": "median"}}, InvalidOption),
        ({"engine_options": "warmup"}, ValidationError),
        ({"dimensions": 385}, InvalidDimensions),
        ({"dtype": "float8"}, InvalidOption),
        ({"pooling": "mean"}, InvalidOption),
        ({"engine": "cpu"}, InvalidOption),
    ],
)
def test_bad_options_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], model: str
) -> None:
    with pytest.raises(error):
        MillpondEmbeddings(model=model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wramup": True}, "unknown option wramup"),
        ({"deterministic": True}, r"deterministic \(it is called batch_invariant\)"),
        ({"normalize": True}, r"normalize \(it is an option of a call\)"),
        ({"device": "cpu", "model": "x"}, "holds device, model, which is a field of its own"),
        ({"cache_dir": "x"}, "cache_dir is cache_folder"),
    ],
)
def test_engine_options_that_are_none_are_refused_by_name(
    options: dict[str, Any], message: str, model: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        MillpondEmbeddings(model=model, engine_options=options)


def test_a_value_that_may_be_secret_is_not_shown(model: str) -> None:
    for options in ({"token": "hf_secret"}, {"engine_options": {"token": "hf_secret"}}):
        with pytest.raises(ValueError, match="token") as refused:
            MillpondEmbeddings(model=model, **options)
        assert "hf_secret" not in str(refused.value)


def test_a_model_that_is_not_there_is_millponds_own_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        MillpondEmbeddings(model=tmp_path / "nothing")


def test_a_model_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLPOND_MODEL", raising=False)
    with pytest.raises(ValueError, match="name a model"):
        MillpondEmbeddings()


def test_a_model_may_be_a_path_and_called_model_name(real_engine: Engine) -> None:
    path = Path(real_engine.info().model.path)
    for name in ("model", "model_name"):
        assert MillpondEmbeddings(**{name: path}).model == str(path)


def test_the_environment_gives_defaults_and_options_win(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MILLPOND_MODEL", "no such model")
    monkeypatch.setenv("MILLPOND_DEVICE", "no such device")
    monkeypatch.setenv("MILLPOND_CACHE_FOLDER", str(tmp_path))
    embeddings = MillpondEmbeddings(model=model, device="cpu")
    assert (embeddings.model, embeddings.device) == (model, "cpu")
    assert embeddings.cache_folder == str(tmp_path)


def test_a_variable_set_to_nothing_counts_as_unset(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MILLPOND_MODEL", "MILLPOND_DEVICE", "MILLPOND_CACHE_FOLDER"):
        monkeypatch.setenv(name, "")
    embeddings = MillpondEmbeddings(model=model)
    assert (embeddings.device, embeddings.cache_folder) == ("auto", None)
    with pytest.raises(ValueError, match="name a model"):
        MillpondEmbeddings()


def test_the_model_is_read_by_either_name(embeddings: MillpondEmbeddings) -> None:
    assert embeddings.model_name == embeddings.model


def test_an_object_with_prompts_has_a_hash(engine: Engine, model: str) -> None:
    prompted = MillpondEmbeddings(model=model, engine_options={"prompts": {"query": "find: "}})
    assert len({prompted, prompted, MillpondEmbeddings(engine=engine)}) == 2


def test_an_object_does_not_change(embeddings: MillpondEmbeddings) -> None:
    with pytest.raises(ValidationError):
        embeddings.device = "cuda"


def test_a_progress_bar_is_shown_for_documents(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    MillpondEmbeddings(engine=engine).embed_documents(TEXTS)
    assert capsys.readouterr().err == ""
    embeddings = MillpondEmbeddings(engine=engine, show_progress=True)
    for embed in DOCUMENTS:
        embed(embeddings, TEXTS)
        assert "4/4" in capsys.readouterr().err


# The engine.


def test_a_given_engine_stays_open_and_out_of_sight(engine: Engine) -> None:
    embeddings = MillpondEmbeddings(engine=engine)
    assert "engine" not in embeddings.model_dump()
    assert "engine=" not in repr(embeddings)
    del embeddings
    gc.collect()
    assert engine.health == "ready"


def test_a_given_engine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_DEVICE", "no such device")
    options = {"max_length": 9, "device": "cpu", "revision": "main"}
    others = {"max_query_wait_ms": 5.0, "pooling": ["cls"]}
    with start_engine(FakeRunner(), cache_dir="models", **options, **others) as engine:
        embeddings = MillpondEmbeddings(engine=engine)
    assert embeddings.model == engine.info().model.name
    assert embeddings.cache_folder == "models"
    assert {name: getattr(embeddings, name) for name in options} == options
    assert embeddings.engine_options == others


@pytest.mark.parametrize(
    "again",
    [
        lambda one: MillpondEmbeddings(**one.model_dump()),
        lambda one: MillpondEmbeddings.model_validate_json(one.model_dump_json()),
        lambda one: pickle.loads(pickle.dumps(one)),
    ],
)
def test_the_options_of_a_given_engine_bring_it_back(
    again: Callable[[Any], Any], model: str
) -> None:
    prompts = {"query": "ask: ", "document": "keep: "}
    with Engine(model, prompts=prompts, max_length=9) as engine:
        given = MillpondEmbeddings(engine=engine)
        found = again(given)
        assert found.model_dump() == given.model_dump()
        for embed in (sync, one_by_one):
            np.testing.assert_allclose(embed(found, TEXTS), embed(given, TEXTS), atol=1e-6)
        assert given.embed_query("bread") != MillpondEmbeddings(model=model).embed_query("bread")


def test_a_closed_engine_says_so(engine: Engine) -> None:
    embeddings = MillpondEmbeddings(engine=engine)
    engine.close()
    with pytest.raises(EngineClosed):
        embeddings.embed_query("text")
    with pytest.raises(EngineClosed):
        asyncio.run(embeddings.aembed_documents(["text"]))


def test_a_deep_copy_outlives_the_original(engine: Engine) -> None:
    copied = copy.deepcopy(MillpondEmbeddings(engine=engine, query_prompt="find: "))
    engine.close()
    assert copied.embed_query("text") == vectors_for(["text"], prompt="find: ")[0].tolist()


def test_a_pickle_is_the_options_and_no_weights(model: str) -> None:
    embeddings = MillpondEmbeddings(model=model, dimensions=64, query_prompt="find: ")
    pickled = pickle.dumps(embeddings)
    assert len(pickled) < 5_000
    found = pickle.loads(pickled)
    assert found.model_dump() == embeddings.model_dump()
    assert found.embed_query("text") == embeddings.embed_query("text")


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda one: pickle.loads(pickle.dumps(one)),
        lambda one: one.model_copy(),
        lambda one: MillpondEmbeddings(**one.model_dump()),
        lambda one: MillpondEmbeddings.model_validate_json(one.model_dump_json()),
    ],
)
def test_copies_embed_on_the_same_engine(again: Callable[[Any], Any], model: str) -> None:
    embeddings = MillpondEmbeddings(model=model, dimensions=64, normalize=True)
    before = Engine.shared(model).stats().texts
    assert again(embeddings).embed_documents(TEXTS) == embeddings.embed_documents(TEXTS)
    assert Engine.shared(model).stats().texts - before == 2 * len(TEXTS)


def test_a_copy_with_other_options_of_a_call_stays_on_the_engine(engine: Engine) -> None:
    embeddings = MillpondEmbeddings(engine=engine, document_prompt="keep: ")
    copied = embeddings.model_copy(update={"query_prompt": "find: ", "dimensions": 3})
    assert copied.engine is engine
    assert (copied.document_prompt, copied.dimensions) == ("keep: ", 3)
    assert len(copied.embed_query("text")) == 3
    assert embeddings.dimensions is None


@pytest.mark.parametrize("given", [True, False])
def test_a_copy_with_other_options_of_the_engine_has_another(given: bool, model: str) -> None:
    embeddings = MillpondEmbeddings(model=model, query_prompt="find: ")
    if given:
        embeddings = MillpondEmbeddings(engine=Engine.shared(model), query_prompt="find: ")
    text = "the mill grinds the grain into flour"
    copied = embeddings.model_copy(update={"max_length": 5})
    assert copied == copied.model_copy()
    expected = MillpondEmbeddings(model=model, query_prompt="find: ", max_length=5)
    assert copied.model_dump() == expected.model_dump()
    assert copied.embed_query(text) == expected.embed_query(text) != embeddings.embed_query(text)


def test_a_copy_with_options_that_are_none_is_refused(embeddings: MillpondEmbeddings) -> None:
    with pytest.raises(InvalidOption, match="did you mean dimensions"):
        embeddings.model_copy(update={"dimensoins": 3})
    with pytest.raises(InvalidDimensions):
        embeddings.model_copy(update={"dimensions": DIMENSION + 1})
    with pytest.raises(ModelNotFound):
        embeddings.model_copy(update={"model_name": "/nothing/there"})


def test_a_copy_may_be_given_another_engine(embeddings: MillpondEmbeddings) -> None:
    with start_engine(FakeRunner(), max_length=5) as other:
        copied = embeddings.model_copy(update={"engine": other})
        assert (copied.engine, copied.max_length) == (other, 5)


@pytest.mark.parametrize("given", [True, False])
def test_a_pickle_whose_model_is_gone_says_so_at_the_first_call(
    given: bool, real_engine: Engine, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(real_engine.info().model.path)
    options: dict[str, Any] = {"engine": Engine(moved)} if given else {"model": moved}
    stored = pickle.dumps(MillpondEmbeddings(**options))
    moved.unlink()
    embeddings = pickle.loads(stored)  # an error here would have a Pool wait for ever
    with pytest.raises(ModelNotFound):
        embeddings.embed_query("bread")
    with pytest.raises(ModelNotFound):
        asyncio.run(embeddings.aembed_documents(["bread"]))
    moved.symlink_to(real_engine.info().model.path)
    assert embeddings.embed_query("bread")


def test_an_object_whose_engine_nothing_brings_back_does_not_pickle(
    embeddings: MillpondEmbeddings,
) -> None:
    with pytest.raises(TypeError, match="with_runner"):
        pickle.dumps(embeddings)
