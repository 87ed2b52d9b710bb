"""`MillpondEmbedding` by itself: its fields, its calls, its copies. Tiny random models."""

from __future__ import annotations

import ast
import asyncio
import copy
import gc
import inspect
import json
import logging
import pickle
import threading
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.millpond import MillpondEmbedding
from llama_index.embeddings.millpond.base import RENAMED, EmbeddingOptions
from pydantic import ValidationError

import millpond
from millpond import BatchStats, CallProgress, Engine, EngineConfig, ProgressBar, StatsHook

LONG = "stone " * 100
TEXTS = ["the stone grinds the grain", "", "a pond", "the stone grinds the grain", "naïve 🦊"]

CALLS: dict[str, Callable[[MillpondEmbedding, str], Any]] = {
    "query": lambda model, text: model.get_query_embedding(text),
    "text": lambda model, text: model.get_text_embedding(text),
    "texts": lambda model, text: model.get_text_embedding_batch([text])[0],
    "async query": lambda model, text: asyncio.run(model.aget_query_embedding(text)),
    "async text": lambda model, text: asyncio.run(model.aget_text_embedding(text)),
    "async texts": lambda model, text: asyncio.run(model.aget_text_embedding_batch([text]))[0],
}
"""The six ways in."""
call = pytest.mark.parametrize("name", CALLS)
AddHook = Callable[[StatsHook], None]


class Gate:
    """Holds the engine after its first batch until the event loop opens the gate."""

    def __init__(self, hook: AddHook) -> None:
        self.reached = asyncio.Event()
        self.opened = threading.Event()
        self.gave_up = False
        self._loop = asyncio.get_running_loop()
        hook(self._hold)

    def _hold(self, batch: BatchStats) -> None:
        if not self.opened.is_set():
            self._loop.call_soon_threadsafe(self.reached.set)
            self.gave_up = not self.opened.wait(timeout=20)
            self.opened.set()


@pytest.fixture
def model(tiny: str, tiny_engine: Engine) -> MillpondEmbedding:
    return MillpondEmbedding(model_name=tiny)


# The class.


def test_embedding_class() -> None:
    names = [cls.__name__ for cls in MillpondEmbedding.__mro__]
    assert BaseEmbedding.__name__ in names
    assert MillpondEmbedding.class_name() == "MillpondEmbedding"


def test_package_is_typed_and_leaves_the_namespace_to_all() -> None:
    leaf = Path(inspect.getfile(MillpondEmbedding)).parent
    assert (leaf / "py.typed").is_file()
    assert not (leaf.parent / "__init__.py").exists()
    assert not (leaf.parent.parent / "__init__.py").exists()


def test_an_everyday_option_of_the_engine_is_a_field_with_its_default() -> None:
    for name in ("device", "dtype", "max_length", "revision", "trust_remote_code"):
        field = MillpondEmbedding.model_fields[name]
        assert field.frozen, name
        assert field.default == getattr(EngineConfig, name), name
    assert MillpondEmbedding.model_fields["engine_options"].frozen


def test_batches_are_as_large_as_llama_index_allows(model: MillpondEmbedding) -> None:
    assert model.embed_batch_size == 2048
    with pytest.raises(ValidationError, match="less than or equal to 2048"):
        MillpondEmbedding(model_name=model.model_name, embed_batch_size=2049)


# The calls.


@call
def test_vectors_are_lists_of_python_floats(name: str, model: MillpondEmbedding) -> None:
    vector = CALLS[name](model, "a pond")
    assert type(vector) is list
    assert {type(value) for value in vector} == {float}
    assert len(vector) == 16


@call
def test_each_way_in_gives_the_engines_vector_of_its_task(
    name: str, model: MillpondEmbedding, tiny_engine: Engine
) -> None:
    task, other = ("query", "document") if "query" in name else ("document", "query")
    vector = CALLS[name](model, "a pond")
    assert vector == tiny_engine.embed("a pond", task=task, normalize=True).tolist()
    assert vector != tiny_engine.embed("a pond", task=other, normalize=True).tolist()


@call
def test_queries_have_interactive_priority_and_texts_bulk(
    name: str, model: MillpondEmbedding, hook: AddHook
) -> None:
    ran: list[BatchStats] = []
    hook(ran.append)
    CALLS[name](model, "a pond")
    interactive = "query" in name
    assert sum(batch.interactive_texts for batch in ran) == interactive
    assert sum(batch.bulk_texts for batch in ran) == (not interactive)


def test_row_i_is_the_vector_of_text_i(model: MillpondEmbedding) -> None:
    expected = [model.get_text_embedding(text) for text in TEXTS]
    assert model.get_text_embedding_batch(TEXTS) == expected
    assert asyncio.run(model.aget_text_embedding_batch(TEXTS)) == expected


def test_more_texts_than_a_turn_or_a_batch_holds_keep_their_order(
    tiny: str, tiny_engine: Engine
) -> None:
    texts = [f"stone {number}" for number in range(300)]
    whole = MillpondEmbedding(model_name=tiny)
    parts = MillpondEmbedding(model_name=tiny, embed_batch_size=7, num_workers=3)
    expected = whole.get_text_embedding_batch(texts)
    assert len({tuple(vector) for vector in expected}) > 250
    assert asyncio.run(whole.aget_text_embedding_batch(texts)) == expected
    assert asyncio.run(parts.aget_text_embedding_batch(texts)) == expected
    assert parts.get_text_embedding_batch(texts) == expected


def test_no_texts_give_no_vectors(model: MillpondEmbedding) -> None:
    assert model.get_text_embedding_batch([]) == []
    assert model._get_text_embeddings([]) == []
    assert asyncio.run(model._aget_text_embeddings([])) == []


def test_a_batch_is_one_call_of_the_engine(
    model: MillpondEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    embed = Engine.embed

    def counted(self: Engine, texts: Any, **options: Any) -> Any:
        called.append(len(texts))
        return embed(self, texts, **options)

    monkeypatch.setattr(Engine, "embed", counted)
    assert len(model.get_text_embedding_batch(["a pond"] * 3000)) == 3000
    assert called == [2048, 952]


WAITED: dict[str, Callable[[MillpondEmbedding], Any]] = {
    "query": lambda model: model.aget_query_embedding("a pond"),
    "text": lambda model: model.aget_text_embedding("a pond"),
    "texts": lambda model: model.aget_text_embedding_batch(TEXTS),
}


@pytest.mark.parametrize("way", WAITED)
def test_the_event_loop_is_free_while_the_model_runs(
    way: str, model: MillpondEmbedding, hook: AddHook
) -> None:
    async def main() -> None:
        gate = Gate(hook)
        running = asyncio.ensure_future(WAITED[way](model))
        await gate.reached.wait()  # the engine does not go on before the loop has come here
        gate.opened.set()
        await running
        assert not gate.gave_up

    asyncio.run(main())


def test_async_calls_start_no_thread(model: MillpondEmbedding) -> None:
    async def main() -> set[int]:
        before = {thread.ident for thread in threading.enumerate()}
        await asyncio.gather(*(model.aget_query_embedding(text) for text in TEXTS))
        await model.aget_text_embedding_batch(TEXTS)
        return {thread.ident or 0 for thread in threading.enumerate()} - before

    assert not asyncio.run(main())


def test_sync_calls_work_inside_a_running_loop(model: MillpondEmbedding) -> None:
    async def main() -> list[float]:
        return model.get_query_embedding("a pond")

    assert asyncio.run(main()) == model.get_query_embedding("a pond")


# Prompts and other options of a call.


def test_saved_prompts_are_used(model: MillpondEmbedding, tiny_engine: Engine) -> None:
    saved = tiny_engine.info().model.prompts
    asked = tiny_engine.embed(saved["query"] + "a pond", prompt="", normalize=True)
    stored = tiny_engine.embed(saved["document"] + "a pond", prompt="", normalize=True)
    np.testing.assert_allclose(model.get_query_embedding("a pond"), asked, atol=1e-6)
    np.testing.assert_allclose(model.get_text_embedding("a pond"), stored, atol=1e-6)


@pytest.mark.parametrize("instruction", ["ask: ", ""])
def test_instructions_win_over_saved_prompts(
    instruction: str, tiny: str, tiny_engine: Engine
) -> None:
    asking = MillpondEmbedding(model_name=tiny, query_instruction=instruction)
    storing = MillpondEmbedding(model_name=tiny, text_instruction=instruction)
    expected = tiny_engine.embed(instruction + "a pond", prompt="", normalize=True).tolist()
    assert asking.get_query_embedding("a pond") == expected
    assert storing.get_text_embedding("a pond") == expected
    assert storing.get_query_embedding("a pond") != expected


def test_vectors_have_unit_length_unless_the_model_is_to_have_its_way(
    tiny: str, tiny_engine: Engine
) -> None:
    scaled = MillpondEmbedding(model_name=tiny).get_text_embedding("a pond")
    raw = MillpondEmbedding(model_name=tiny, normalize=False).get_text_embedding("a pond")
    assert np.linalg.norm(scaled) == pytest.approx(1)
    assert np.linalg.norm(raw) > 1.5
    np.testing.assert_allclose(scaled, raw / np.linalg.norm(raw), atol=1e-6)


def test_dimensions_are_cut_and_normalised_again(tiny: str, tiny_engine: Engine) -> None:
    whole = np.asarray(MillpondEmbedding(model_name=tiny).get_text_embedding("a pond"))[:4]
    cut = MillpondEmbedding(model_name=tiny, dimensions=4).get_text_embedding("a pond")
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole), atol=1e-6)


def test_long_texts_are_cut_at_the_side_asked_for(tiny: str, tiny_engine: Engine) -> None:
    text = "pond " * 100 + LONG
    end = MillpondEmbedding(model_name=tiny, truncate="end").get_text_embedding(text)
    start = MillpondEmbedding(model_name=tiny, truncate="start").get_text_embedding(text)
    assert MillpondEmbedding(model_name=tiny).get_text_embedding(text) == end
    assert start != end


def test_truncation_is_said_with_what_to_do_and_again_when_the_count_has_doubled(
    tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = MillpondEmbedding(model_name=tiny, max_length=31, embed_batch_size=2)
    with caplog.at_level(logging.WARNING, logger="millpond"):
        model.get_text_embedding_batch(["short", LONG, LONG, "short"])
        assert [record.getMessage() for record in caplog.records] == [
            "2 of 4 texts were longer than the 31 tokens the model reads and lost a part: set "
            "Settings.chunk_size = 23 and Settings.chunk_overlap = 2, or those of your node parser"
        ]
        model.get_text_embedding(LONG)
        model.get_text_embedding_batch(["short"])
        assert len(caplog.records) == 1
        asyncio.run(model.aget_text_embedding_batch([LONG]))
        assert caplog.records[-1].getMessage().startswith("4 of 7 texts were longer")
    assert len(caplog.records) == 2
    assert model.engine.stats().truncated_texts == 4


def test_what_was_cut_is_counted_from_nothing_where_a_pickle_is_loaded(
    tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = MillpondEmbedding(model_name=tiny, max_length=31)
    with caplog.at_level(logging.WARNING, logger="millpond"):
        model.get_text_embedding_batch([LONG] * 3)
        pickle.loads(pickle.dumps(model)).get_text_embedding_batch([LONG])
    assert [record.getMessage()[:6] for record in caplog.records] == ["3 of 3", "1 of 1"]


def test_a_progress_bar_is_shown_when_asked_for(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    MillpondEmbedding(model_name=tiny).get_text_embedding_batch(TEXTS)
    assert capsys.readouterr().err == ""
    MillpondEmbedding(model_name=tiny, show_progress_bar=True).get_text_embedding_batch(TEXTS)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
def test_the_bar_of_a_call_moves_with_every_batch_over_all_of_its_texts(
    use_async: bool, tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[CallProgress] = []

    def advance(bar: ProgressBar, progress: CallProgress) -> None:
        told.append(progress)
        bar.update(progress.texts)

    monkeypatch.setattr(ProgressBar, "advance", advance)
    model = MillpondEmbedding(
        model_name=tiny, engine_options={"max_batch_tokens": 64}, embed_batch_size=32
    )
    texts = [f"stone {number} grinds the grain" for number in range(64)]
    if use_async:
        asyncio.run(model.aget_text_embedding_batch(texts, show_progress=True))
    else:
        model.get_text_embedding_batch(texts, show_progress=True)
    assert len(told) > 4
    assert sum(progress.texts for progress in told) == len(texts)
    assert sum(progress.share for progress in told) == pytest.approx(1)
    shown = capsys.readouterr().err
    assert "64/64" in shown
    assert shown.count("Generating embeddings: 100%") == 1


def test_the_bar_counts_texts_that_a_cache_had(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = MillpondEmbedding(model_name=tiny, embeddings_cache=SimpleKVStore())
    model.get_text_embedding_batch(TEXTS[:2])
    model.get_text_embedding_batch(TEXTS, show_progress=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err


# Errors.


def test_a_text_that_is_refused_is_named_by_its_index(tiny: str, tiny_engine: Engine) -> None:
    strict = MillpondEmbedding(model_name=tiny, truncate="error")
    with pytest.raises(millpond.TextTooLong) as raised:
        strict.get_text_embedding_batch(["short", "short", LONG])
    assert raised.value.index == 2
    with pytest.raises(millpond.TextTooLong) as raised:
        asyncio.run(strict.aget_text_embedding_batch(["short", LONG]))
    assert raised.value.index == 1


def test_an_input_that_is_no_text_is_named_by_its_index(model: MillpondEmbedding) -> None:
    with pytest.raises(millpond.InvalidText) as raised:
        model._get_text_embeddings(["short", None])  # type: ignore[list-item]
    assert raised.value.index == 1


@call
@pytest.mark.parametrize("thing", [[101, 102], ["a pond"], None, b"a pond"])
def test_what_is_no_string_is_refused(name: str, thing: Any, model: MillpondEmbedding) -> None:
    with pytest.raises(millpond.InvalidText):
        CALLS[name](model, thing)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dimensions": 17}, millpond.InvalidDimensions),
        ({"engine_options": {"pooling": "median"}}, millpond.InvalidOption),
        ({"engine_options": {"wramup": True}}, millpond.InvalidOption),
        ({"engine_options": {"device": "cpu"}}, millpond.InvalidOption),
        ({"pooling": "mean"}, millpond.InvalidOption),
        ({"max_length": 0}, millpond.InvalidOption),
        ({"engine": "cpu"}, millpond.InvalidOption),
        ({"truncate": "middle"}, ValidationError),
        ({"dtype": "float8"}, millpond.InvalidOption),
        ({"dimensoins": 8}, millpond.InvalidOption),
    ],
)
def test_bad_options_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], model: MillpondEmbedding
) -> None:
    with pytest.raises(error):
        MillpondEmbedding(model_name=model.model_name, **options)


def test_a_model_that_is_not_there_is_millponds_own_error(tmp_path: Path) -> None:
    with pytest.raises(millpond.ModelNotFound):
        MillpondEmbedding(model_name=str(tmp_path / "nothing"))


def test_no_device_is_any_device_as_in_the_incumbent(model: MillpondEmbedding) -> None:
    assert MillpondEmbedding(model.model_name, device=None).engine.config == model.engine.config


def test_the_cache_folder_may_be_a_path(tiny: str, tiny_engine: Engine, tmp_path: Path) -> None:
    model = MillpondEmbedding(model_name=tiny, cache_folder=tmp_path)
    assert model.cache_folder == str(tmp_path)


def test_a_model_has_to_be_named() -> None:
    with pytest.raises(ValidationError, match="model_name"):
        MillpondEmbedding()


def test_the_engines_options_are_fixed_and_the_calls_are_not(model: MillpondEmbedding) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        model.dtype = "float32"
    whole = model.get_text_embedding("a pond")
    model.dimensions = 4
    assert len(model.get_text_embedding("a pond")) == 4 < len(whole)


def test_a_closed_engine_says_so(tiny: str, tiny_engine: Engine) -> None:
    engine = Engine(tiny)
    model = MillpondEmbedding(engine=engine)
    engine.close()
    with pytest.raises(millpond.EngineClosed):
        model.get_text_embedding("a pond")


def test_a_cancelled_call_is_taken_out(tiny: str) -> None:
    async def main(model: MillpondEmbedding) -> None:
        gate = Gate(model.engine.add_stats_hook)
        running = asyncio.ensure_future(
            model.aget_text_embedding_batch([f"pond {number}" for number in range(4000)])
        )
        await gate.reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        gate.opened.set()

    with Engine(tiny) as engine:  # its own: what runs still at the end is in nobody's counts
        model = MillpondEmbedding(engine=engine)
        asyncio.run(main(model))
        assert engine.stats().cancelled_texts > 0
        assert model.get_query_embedding("a pond")


# One engine.


def test_every_option_of_the_engine_reaches_it(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(Engine, "shared", lambda **options: asked.append(options) or tiny_engine)
    named = {
        "device": ["cuda:0", "cuda:1"],
        "dtype": "bfloat16",
        "revision": "main",
        "trust_remote_code": True,
        "max_length": 8,
    }
    others = {"pooling": ["cls", "mean"], "prompts": {"query": "ask: "}, "warmup": True}
    MillpondEmbedding("a-model", cache_folder="here", **named, engine_options=others)
    assert asked == [{"model": "a-model", "cache_dir": "here", **named, **others}]


def test_equal_options_share_one_engine(tiny: str, tiny_engine: Engine) -> None:
    models = [
        MillpondEmbedding(tiny),
        MillpondEmbedding(model_name=Path(tiny)),
        MillpondEmbedding(model_name=tiny, dimensions=4, query_instruction="ask: "),
    ]
    before = tiny_engine.stats().texts
    for model in models:
        model.get_text_embedding("a pond")
    assert tiny_engine.stats().texts == before + 3
    assert all(model.engine.stats() == tiny_engine.stats() for model in models)


def test_other_options_have_an_engine_of_their_own(tiny: str, tiny_engine: Engine) -> None:
    before = tiny_engine.stats()
    MillpondEmbedding(model_name=tiny, max_length=8).get_text_embedding("a pond")
    assert tiny_engine.stats() == before


def test_the_last_object_to_go_releases_the_engine(tiny: str) -> None:
    def another() -> MillpondEmbedding:
        return MillpondEmbedding(model_name=tiny, max_length=9)

    first, second = another(), another()
    first.get_text_embedding("a pond")
    del first
    gc.collect()
    assert second.engine.health == "ready"
    assert another().engine.stats().texts == 1
    del second
    gc.collect()
    with Engine.shared(tiny, max_length=9):
        pass  # a thread lets go for what was collected, at its time; this one has when it ends
    assert another().engine.stats().texts == 0


def test_a_given_engine_is_used_and_describes_the_object(tiny: str) -> None:
    prompts = {"query": "ask: "}
    with Engine(tiny, max_length=8, prompts=prompts, pooling="cls") as engine:
        model = MillpondEmbedding(engine=engine, dimensions=4)
        assert model.engine is engine
        data = model.to_dict()
        assert data["model_name"] == tiny
        assert data["max_length"] == 8
        assert data["engine_options"] == {"prompts": prompts, "pooling": ["cls"]}
        vector = model.get_query_embedding("a pond")
        assert engine.stats().texts == 1
        assert "engine" not in data
    assert MillpondEmbedding.from_dict(data).get_query_embedding("a pond") == vector


@pytest.mark.parametrize("options", [{"max_length": 9}, {"model_name": "other"}])
def test_a_given_engine_and_options_that_contradict_it_are_refused(
    options: dict[str, Any], tiny: str
) -> None:
    with (
        Engine(tiny, max_length=8) as engine,
        pytest.raises(millpond.InvalidOption, match="leave out"),
    ):
        MillpondEmbedding(engine=engine, **options)


# Copies and serialised forms.

COPIES: dict[str, Callable[[MillpondEmbedding], MillpondEmbedding]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda model: model.model_copy(deep=True),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "to_dict": lambda model: MillpondEmbedding.from_dict(model.to_dict()),
    "to_json": lambda model: MillpondEmbedding.from_json(model.to_json()),
    "model_dump": lambda model: MillpondEmbedding(**model.model_dump()),
    "model_validate": lambda model: MillpondEmbedding.model_validate(model.model_dump()),
}


@pytest.fixture(scope="module")
def configured(tiny: str) -> MillpondEmbedding:
    return MillpondEmbedding(
        model_name=tiny,
        max_length=16,
        engine_options={"pooling": ["cls", "mean"], "prompts": {"query": "ask: "}},
        dimensions=20,
        normalize=False,
        truncate="start",
        text_instruction="keep: ",
        embed_batch_size=3,
    )


@pytest.mark.parametrize("name", COPIES)
def test_copies_embed_alike_on_the_same_engine(name: str, configured: MillpondEmbedding) -> None:
    other = COPIES[name](configured)
    assert type(other) is MillpondEmbedding
    assert other.to_dict() == configured.to_dict()
    before = configured.engine.stats().texts
    vectors = other.get_text_embedding_batch(TEXTS)
    assert configured.engine.stats().texts == before + len(TEXTS)
    assert vectors == configured.get_text_embedding_batch(TEXTS)
    assert other.get_query_embedding(LONG) == configured.get_query_embedding(LONG)


def test_a_deep_copy_outlives_the_original(tiny: str, tiny_engine: Engine) -> None:
    model = MillpondEmbedding(model_name=tiny)
    other = copy.deepcopy(model)
    model.engine.close()
    assert other.get_text_embedding("a pond")


def test_a_copy_with_other_options_is_built_with_them(tiny: str, tiny_engine: Engine) -> None:
    watcher, cache = CallbackManager([]), SimpleKVStore()
    model = MillpondEmbedding(
        model_name=tiny, callback_manager=watcher, embeddings_cache=cache, num_workers=3
    )
    copied = model.model_copy(update={"max_length": 5})
    assert copied.engine.config.max_length == copied.max_length == 5
    expected = MillpondEmbedding(model_name=tiny, max_length=5)
    assert copied._get_text_embedding(LONG) == expected._get_text_embedding(LONG)
    assert copied._get_text_embedding(LONG) != model._get_text_embedding(LONG)
    assert copied.callback_manager is watcher
    assert copied.embeddings_cache is cache
    assert copied.num_workers == 3


def test_a_copy_with_other_options_of_a_call_stays_on_the_engine(tiny: str) -> None:
    with Engine(tiny, max_length=8) as engine:
        copied = MillpondEmbedding(engine=engine).model_copy(update={"dimensions": 4})
        assert copied.engine is engine
        assert len(copied.get_text_embedding("a pond")) == 4


def test_a_copy_may_be_given_another_engine(model: MillpondEmbedding, tiny: str) -> None:
    with Engine(tiny, max_length=8) as engine:
        copied = model.model_copy(update={"engine": engine, "dimensions": 4})
        assert (copied.engine, copied.max_length, copied.dimensions) == (engine, 8, 4)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"batch_size": 64}, "batch_size (leave it out: it is 2048, and batches are sized in"),
        ({"backend": "onnx"}, "backend (none; set HF_TOKEN and HF_HUB_OFFLINE)"),
        ({"model_kwargs": {"torch_dtype": "half"}}, 'model_kwargs (dtype; "auto" by default)'),
        ({"engine_options": {"devcie": "cpu"}}, "devcie (did you mean device?)"),
    ],
)
def test_a_parameter_of_the_incumbent_is_answered_with_its_row(
    options: dict[str, Any], part: str
) -> None:
    with pytest.raises(millpond.InvalidOption) as refused:
        MillpondEmbedding("no-such-folder", **options)
    assert part in str(refused.value)


def test_what_it_says_of_them_is_what_the_page_says() -> None:
    page = Path(__file__).parents[3] / "docs" / "integrations.md"
    table = page.read_text(encoding="utf-8").partition("## Switching from `HuggingFaceEmbedding` ")[
        2
    ]
    rows = [row.replace("`", "") for row in table.splitlines() if row.startswith("| `")]
    for name, now in RENAMED.items():
        assert any(name in row.split(" | ")[0] and f"| {now} |" in row for row in rows), name


def test_a_copy_with_bad_options_is_refused(model: MillpondEmbedding) -> None:
    with pytest.raises(millpond.InvalidOption, match="did you mean dimensions"):
        model.model_copy(update={"dimensoins": 4})
    with pytest.raises(millpond.InvalidDimensions):
        model.model_copy(update={"dimensions": 17})
    with pytest.raises(millpond.ModelNotFound):
        model.model_copy(update={"model_name": "/nothing/there"})


def test_a_pickle_holds_no_weights(model: MillpondEmbedding) -> None:
    assert len(pickle.dumps(model)) < 4000


def test_a_pickle_whose_model_is_gone_says_so_at_the_first_call(tiny: str, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(tiny)
    stored = pickle.dumps(MillpondEmbedding(model_name=moved))
    gc.collect()
    moved.unlink()
    model = pickle.loads(stored)
    with pytest.raises(millpond.ModelNotFound):
        model.get_text_embedding("a pond")
    with pytest.raises(millpond.ModelNotFound):
        asyncio.run(model.aget_query_embedding("a pond"))
    moved.symlink_to(tiny)
    assert model.get_text_embedding("a pond")


OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "revision": "main",
    "trust_remote_code": True,
    "max_length": 8,
    "engine_options": {"pooling": "cls", "prompts": {"query": ""}, "batch_invariant": True},
    "query_instruction": "",
    "text_instruction": "",
    "normalize": False,
    "dimensions": 4,
    "truncate": "start",
}


def test_every_option_that_changes_vectors_is_in_the_caches_key(
    tiny: str, model: MillpondEmbedding, tmp_path: Path
) -> None:
    another = tmp_path / "another"
    another.symlink_to(tiny)
    before = model.to_dict()
    after = MillpondEmbedding(model_name=another, **OPTIONS).to_dict()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"model_name", *OPTIONS}
    assert json.loads(json.dumps(after)) == after


def test_the_schema_and_the_signature_name_every_option(model: MillpondEmbedding) -> None:
    fields = set(MillpondEmbedding.model_fields)
    assert set(MillpondEmbedding.model_json_schema()["properties"]) == {*fields, "class_name"}
    assert set(inspect.signature(MillpondEmbedding).parameters) == {*fields, "engine"}
    assert set(typing.get_type_hints(EmbeddingOptions)) == fields - {"model_name"}
    documented = MillpondEmbedding.__doc__ or ""
    inherited = set(BaseEmbedding.model_fields) - {"model_name", "embed_batch_size"}
    assert all(f"{name} (" in documented for name in fields - inherited)


def test_only_public_names_of_millpond_are_imported() -> None:
    tree = ast.parse(Path(inspect.getfile(MillpondEmbedding)).read_text(encoding="utf-8"))
    names: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("millpond"):
            names.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
    assert set(names) == {"millpond"}
    assert names["millpond"] <= set(millpond.__all__)
