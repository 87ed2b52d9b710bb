"""The public object: what its calls take, give and refuse, and what it tells about itself."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import (
    DIMENSION,
    PATIENCE_S,
    FakeRunner,
    held_engine,
    start_engine,
    token_ids,
    vectors_for,
)

from millpond import (
    BatchStats,
    Embeddings,
    Engine,
    EngineError,
    InvalidDimensions,
    InvalidInput,
    InvalidOption,
    InvalidText,
    InvalidTokenIds,
    Priority,
    TextFailed,
    TextsFailed,
    TextTooLong,
    UnknownPrompt,
    UnknownTask,
    quantize,
)
from millpond.scheduler.batch import BatchShape


@pytest.fixture
def engine() -> Any:
    with start_engine(FakeRunner()) as engine:
        yield engine


# What goes in and what comes out.


def test_one_text_gives_a_vector_a_list_a_matrix_and_no_texts_an_empty_matrix(
    engine: Engine,
) -> None:
    assert engine.embed("a b").shape == (DIMENSION,)
    assert engine.embed(["a b"]).shape == (1, DIMENSION)
    assert engine.embed([]).shape == (0, DIMENSION)
    assert engine.embed(["a b"]).dtype == np.float32
    np.testing.assert_array_equal(engine.embed("a b"), vectors_for(["a b"])[0])


@pytest.mark.parametrize(
    ("output_dtype", "empty"),
    [("int8", np.int8), ("uint8", np.uint8), ("binary", np.int8), ("float16", np.float16)],
)
def test_no_texts_give_an_empty_matrix_of_every_type(
    engine: Engine, output_dtype: Any, empty: type
) -> None:
    found = engine.embed([], output_dtype=output_dtype)
    assert found.shape == (0, 1 if output_dtype == "binary" else DIMENSION)
    assert found.dtype == empty


@pytest.mark.parametrize(
    "texts",
    [
        ("a", "b c"),
        np.array(["a", "b c"]),
        np.array(["a", "b c"], dtype=object),
        [np.str_("a"), "b c"],
    ],
)
def test_any_sequence_of_strings_is_a_list_of_texts(engine: Engine, texts: Any) -> None:
    np.testing.assert_array_equal(engine.embed(texts), vectors_for(["a", "b c"]))


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_token_ids_are_texts_too(engine: Engine, kind: Any) -> None:
    one, other = (kind(token_ids(text).tolist()) for text in ("a b", "c"))
    expected = vectors_for(["a b", "c"])
    np.testing.assert_array_equal(engine.embed([one, other]), expected)
    np.testing.assert_array_equal(engine.embed(one), expected[0])
    assert engine.embed([other]).shape == (1, DIMENSION)


@pytest.mark.parametrize(
    ("texts", "error", "index"),
    [
        (None, InvalidText, 0),
        (7.5, InvalidText, 0),
        (b"bytes", InvalidText, 0),
        ({"a": 1}, InvalidText, 0),
        ((text for text in "ab"), InvalidText, 0),
        (np.array("a"), InvalidText, 0),
        (["a", 1], InvalidText, 1),
        (["a", None], InvalidText, 1),
        (["a", b"b"], InvalidText, 1),
        ([None, "a"], InvalidText, 0),
        ([[1], "a"], InvalidText, 1),
        ([[1], []], InvalidTokenIds, 1),
        ([[1], [1.5]], InvalidTokenIds, 1),
        ([[1], [True]], InvalidTokenIds, 1),
        ([[1], [[2], [3, 4]]], InvalidTokenIds, 1),
        ([[1], [[2], [3]]], InvalidTokenIds, 1),
        ([[1], [2**40]], InvalidTokenIds, 1),
        ([[1], [2**80]], InvalidTokenIds, 1),
        ([1, "a"], InvalidTokenIds, 0),
    ],
)
def test_what_is_no_text_is_refused_with_its_index(
    engine: Engine, texts: Any, error: type[InvalidInput], index: int
) -> None:
    for progress in (False, True):
        with contextlib.redirect_stderr(io.StringIO()), pytest.raises(error) as caught:
            engine.embed(texts, progress=progress)
        assert caught.value.index == index
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"task": "clustering"}, UnknownTask, "'document', 'query'"),
        ({"task": ["query"]}, UnknownTask, "task="),
        ({"prompt_name": "titel"}, UnknownPrompt, "'title'"),
        ({"prompt": 7}, InvalidOption, "prompt=7"),
        ({"prompt_name": 7}, InvalidOption, "prompt_name=7"),
        ({"dimensions": 0}, InvalidDimensions, "between 1 and"),
        ({"dimensions": DIMENSION + 1}, InvalidDimensions, f"the model has {DIMENSION}"),
        ({"dimensions": 2.0}, InvalidDimensions, "whole number"),
        ({"dimensions": True}, InvalidDimensions, "whole number"),
        ({"dimensions": "2"}, InvalidDimensions, "whole number"),
        ({"truncate": "middle"}, InvalidOption, "'end', 'start' or 'error'"),
        ({"truncate": 1}, InvalidOption, "'end', 'start' or 'error'"),
        ({"truncate": np.array(["end"])}, InvalidOption, "'end', 'start' or 'error'"),
        ({"normalize": "false"}, InvalidOption, "normalize='false': it must be True or False"),
        ({"normalize": 1}, InvalidOption, "normalize=1"),
        ({"prompt": "half \ud800"}, InvalidOption, "surrogate"),
        ({"output_dtype": ["float32"]}, InvalidOption, "ubinary"),
        ({"output_dtype": "float64"}, InvalidOption, "ubinary"),
        ({"output_dtype": "int8"}, InvalidOption, "one vector has none"),
        ({"priority": "fast"}, InvalidOption, "'interactive' or 'bulk'"),
        ({"priority": True}, InvalidOption, "'interactive' or 'bulk'"),
        ({"priority": ["bulk"]}, InvalidOption, "'interactive' or 'bulk'"),
        ({"timeout": True}, InvalidOption, "above 0"),
        ({"timeout": 0}, InvalidOption, "above 0"),
        ({"timeout": -1}, InvalidOption, "above 0"),
        ({"timeout": "1"}, InvalidOption, "above 0"),
        ({"timeout": float("nan")}, InvalidOption, "above 0"),
        ({"timeout": float("inf")}, InvalidOption, "leave it out"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_and_the_engine_goes_on(
    engine: Engine, options: dict[str, Any], error: type[InvalidOption], says: str
) -> None:
    with pytest.raises(error, match=says):
        engine.embed("a", **options)
    with pytest.raises(error, match=says):
        engine.submit(["a"], **options)
    with pytest.raises(error, match=says):
        asyncio.run(engine.aembed("a", **options))
    assert engine.embed("a").shape == (DIMENSION,)
    assert engine.health == "ready"


def test_an_option_that_does_not_exist_is_a_type_error(engine: Engine) -> None:
    with pytest.raises(TypeError, match="dimension"):
        engine.embed("a", dimension=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="dimension"):
        engine.submit("a", dimension=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidOption, match=r"batch_size.*max_batch_tokens"):
        start_engine(FakeRunner(), batch_size=2)


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, ""),
        ({"task": "query"}, "ask: "),
        ({"task": "document"}, ""),
        ({"prompt_name": "title"}, "title: "),
        ({"task": "query", "prompt_name": "title"}, "title: "),
        ({"task": "query", "prompt_name": "title", "prompt": "say: "}, "say: "),
        ({"task": "query", "prompt": ""}, ""),
    ],
)
def test_the_prompt_is_put_in_front(engine: Engine, options: dict[str, Any], prompt: str) -> None:
    np.testing.assert_array_equal(
        engine.embed(["a b", "c"], **options), vectors_for(["a b", "c"], prompt)
    )


def test_a_prompt_cannot_be_put_in_front_of_token_ids(engine: Engine) -> None:
    with pytest.raises(InvalidOption, match="prompt=''"):
        engine.embed([[1, 2]], task="query")
    assert engine.embed([[1, 2]], task="query", prompt="").shape == (1, DIMENSION)


def test_each_task_takes_its_route() -> None:
    runner = FakeRunner(route_names=("query", "document"), shapes=(BatchShape(), BatchShape(8)))
    with start_engine(runner) as engine:
        engine.embed("a b", task="query")
        engine.embed("c", task="document")
        assert [batch.route for batch in runner.batches] == [0, 1]
        assert [batch.padded_length for batch in runner.batches] == [None, 8]


def test_dimensions_are_sliced_and_the_unit_length_restored(engine: Engine) -> None:
    found = engine.embed(["a", "b"], dimensions=3)
    sliced = vectors_for(["a", "b"])[:, :3]
    np.testing.assert_allclose(
        found, sliced / np.linalg.norm(sliced, axis=1, keepdims=True), rtol=1e-6
    )


def test_the_checkpoints_own_number_of_dimensions_is_the_default() -> None:
    with start_engine(FakeRunner(), spec={"truncate_dim": 4}) as engine:
        assert engine.embed("a").shape == (4,)
        assert engine.embed("a", dimensions=6).shape == (6,)


def test_vectors_are_normalised_on_request(engine: Engine) -> None:
    assert np.linalg.norm(engine.embed("a")) != pytest.approx(1)
    assert np.linalg.norm(engine.embed("a", normalize=True)) == pytest.approx(1)


@pytest.mark.parametrize(
    "output_dtype", ["float32", "float16", "int8", "uint8", "binary", "ubinary"]
)
def test_every_output_type_is_the_quantised_float_vector(engine: Engine, output_dtype: Any) -> None:
    texts = [f"text {n}" for n in range(20)]
    found = engine.embed(texts, output_dtype=output_dtype)
    expected = quantize(vectors_for(texts), output_dtype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("truncate", ["end", "start", None])
def test_a_text_that_is_too_long_is_cut_counted_and_logged_once(
    truncate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with start_engine(FakeRunner(max_length=3)) as engine:
        with caplog.at_level(logging.WARNING, "millpond"):
            result = engine.submit(["a b c d", "a"], truncate=truncate).result(PATIENCE_S)
            engine.embed("e f g h i", truncate=truncate)
        assert result.truncated.tolist() == [True, False]
        assert result.token_counts.tolist() == [3, 1]
        kept = "b c d" if truncate == "start" else "a b c"
        np.testing.assert_array_equal(result.vectors, vectors_for([kept, "a"]))
        assert len(caplog.records) == 1
        assert "1 of 2 texts" in caplog.text
        assert engine.stats().truncated_texts == 2


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
def test_a_text_that_is_too_long_is_refused_on_request(priority: Any) -> None:
    with start_engine(FakeRunner(max_length=3)) as engine:
        with pytest.raises(TextTooLong) as caught:
            engine.embed(["a", "a b c d"], truncate="error", priority=priority)
        assert caught.value.index == 1
        assert engine.embed(["a"], truncate="error").shape == (1, DIMENSION)


@pytest.mark.parametrize(
    ("texts", "options", "priority"),
    [
        ("a", {}, "interactive"),
        (["a"], {}, "interactive"),
        (["a", "b"], {}, "bulk"),
        (["a", "b"], {"task": "query"}, "interactive"),
        ("a", {"priority": "bulk"}, "bulk"),
        (["a", "b"], {"priority": Priority.INTERACTIVE}, "interactive"),
    ],
)
def test_a_single_text_or_a_query_is_interactive(
    texts: Any, options: dict[str, Any], priority: str
) -> None:
    runner = FakeRunner()
    with start_engine(runner) as engine:
        engine.embed(texts, **options)
        assert {name for batch in runner.batches for name in batch.priorities} == {priority}


BAD_TEXTS: list[tuple[list[Any], dict[int, type[InvalidInput]]]] = [
    (["ok", None, "b"], {1: InvalidText}),
    ([None, "ok", 7, "b"], {0: InvalidText, 2: InvalidText}),
    (["ok", b"bytes", bytearray(b"x"), "b"], {1: InvalidText, 2: InvalidText}),
    (["ok", [1, 2], "b"], {1: InvalidText}),
    ([None], {0: InvalidText}),
    ([[1, 2], [], [3]], {1: InvalidTokenIds}),
    ([[1, 2], "text", [2**40], [3]], {1: InvalidText, 2: InvalidTokenIds}),
    (["ok", "refused", "b"], {1: InvalidInput}),
    (
        ["refused", *(f"n{n}" for n in range(30)), "refused too"],
        {0: InvalidInput, 31: InvalidInput},
    ),
    (["refused"] * 5, dict.fromkeys(range(5), InvalidInput)),
    (["ok", "much too long a text"], {1: TextTooLong}),
    (["much too long a text"] * 9, dict.fromkeys(range(9), TextTooLong)),
]


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
@pytest.mark.parametrize(("texts", "errors"), BAD_TEXTS)
def test_a_bad_text_has_its_error_and_the_others_their_vectors(
    texts: list[Any], errors: dict[int, type[InvalidInput]], priority: Any
) -> None:
    with start_engine(FakeRunner(refuses=["refused"], max_length=4)) as engine:
        result = engine.submit(texts, truncate="error", priority=priority).result(PATIENCE_S)
        assert {row: type(error) for row, error in result.errors.items()} == errors
        assert all(error.index == row for row, error in result.errors.items())
        good = [row for row in range(len(texts)) if row not in errors]
        alone = [texts[row] for row in good]
        if alone:
            np.testing.assert_array_equal(result.vectors[good], engine.embed(alone))
        assert np.isnan(result.vectors[list(errors)]).all()
        with pytest.raises(errors[min(errors)]) as caught:
            result.raise_for_errors()
        assert caught.value.index == min(errors)
        ran = engine.stats().texts
        for call in (engine.embed, lambda *a, **o: asyncio.run(engine.aembed(*a, **o))):
            with pytest.raises(InvalidInput) as caught:
                call(texts, truncate="error", priority=priority)
            assert type(caught.value) is errors[caught.value.index]
        stats = engine.stats()
        assert stats.texts == ran, "where the call raises nothing of it is embedded"
        assert (stats.waiting_bulk_tokens, stats.waiting_interactive_tokens) == (0, 0)
        assert stats.failed_texts == 0, "they were not accepted"


@pytest.mark.parametrize("chunk_size", [2, 5, 100])
def test_embed_iter_raises_for_bad_texts_and_goes_on(chunk_size: int) -> None:
    texts: list[Any] = [f"n{n}" for n in range(12)]
    texts[3], texts[4], texts[7], texts[11] = "refused", "poison", "poison", None
    with start_engine(FakeRunner(refuses=["refused"], raises_on=["poison"])) as engine:
        rows = engine.embed_iter(texts, chunk_size=chunk_size)
        matrices, errors = [], dict[int, Exception]()
        while True:
            try:
                matrices.append(next(rows))
            except StopIteration:
                break
            except TextsFailed as error:
                errors |= error.errors
            except (InvalidInput, TextFailed) as error:
                errors[error.index] = error
        assert sorted(errors) == [3, 4, 7, 11]
        good = [text for n, text in enumerate(texts) if n not in errors]
        np.testing.assert_array_equal(np.concatenate(matrices), vectors_for(good))


def test_embed_iter_takes_no_integers_for_texts(engine: Engine) -> None:
    with pytest.raises(InvalidText, match="text 0: expected a string"):
        next(engine.embed_iter(iter([1, 2, 3])))  # type: ignore[list-item]


def test_embed_iter_refuses_options_at_the_call(engine: Engine) -> None:
    with pytest.raises(InvalidOption, match="timeout"):
        engine.embed_iter(["a"], timeout=0)
    for size in (0, True, 1.5, 2**70):
        with pytest.raises(InvalidOption, match="chunk_size"):
            engine.embed_iter(["a"], chunk_size=size)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="progress=True: embed_iter takes a function"):
        engine.embed_iter(["a"], progress=True)  # type: ignore[arg-type]


class Series:
    """As pandas has them: no sequence, and it can make a list of itself."""

    def __iter__(self) -> Any:
        return iter(self.tolist())

    def __len__(self) -> int:
        return 2

    def tolist(self) -> list[str]:
        return ["a", "b"]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (Series(), r"not Series; pass its \.tolist\(\)"),
        (bytearray(b"text"), "not bytearray; decode it"),
        (memoryview(b"text"), "not memoryview; decode it"),
        (b"text", "not bytes; decode it"),
        ((text for text in "ab"), "goes to embed_iter"),
    ],
)
def test_what_holds_no_texts_is_refused_with_what_to_do(
    engine: Engine, texts: Any, says: str
) -> None:
    for call in (engine.embed, engine.submit):
        with pytest.raises(InvalidText, match=says):
            call(texts)


def test_a_series_can_be_iterated(engine: Engine) -> None:
    (matrix,) = engine.embed_iter(Series())
    np.testing.assert_array_equal(matrix, vectors_for(["a", "b"]))
    with pytest.raises(InvalidOption, match="iterable of texts"):
        engine.embed_iter(bytearray(b"text"))  # type: ignore[arg-type]


def test_options_of_the_other_calls_are_refused_too(engine: Engine) -> None:
    refused: list[Any] = [
        lambda: engine.embed("a", progress="no"),  # type: ignore[arg-type]
        lambda: engine.submit("a", wait=0),  # type: ignore[arg-type]
        lambda: engine.close(drain="no"),  # type: ignore[arg-type]
        lambda: engine.tokenize(["a"], special_tokens="no"),  # type: ignore[arg-type]
        lambda: engine.add_stats_hook(3),  # type: ignore[arg-type]
        lambda: quantize(np.zeros((2, 2)), "int4"),  # type: ignore[arg-type]
    ]
    for call in refused:
        with pytest.raises(InvalidOption):
            call()
    for texts in (7, None, b"bytes"):
        with pytest.raises(InvalidText):
            engine.tokenize(texts)  # type: ignore[arg-type]
    for ids in (7, [7], ["a"], None, np.array(7), [np.array(7)]):
        with pytest.raises(InvalidTokenIds):
            engine.detokenize(ids)  # type: ignore[arg-type]
    assert engine.health == "ready"


@pytest.mark.parametrize("kind", [int, float, np.int64, np.float16, np.float32, np.float64])
def test_a_timeout_is_any_number(engine: Engine, kind: type) -> None:
    """Also of NumPy's kinds, which neither locks nor event loops take."""
    for texts in ("a", ["a", "b c"]):
        asked = engine.embed(texts, timeout=kind(60))
        assert np.array_equal(asyncio.run(engine.aembed(texts, timeout=kind(60))), asked)
    assert len(list(engine.embed_iter(["a", "b"], timeout=kind(60)))) == 1
    assert engine.submit("a", timeout=kind(60)).result(kind(60)).errors == {}


def test_a_result_has_counts_timings_and_errors_per_text(engine: Engine) -> None:
    result = engine.submit(["a b c", "", "d"]).result(PATIENCE_S)
    assert isinstance(result, Embeddings)
    assert len(result) == 3
    assert result.token_counts.tolist() == [3, 1, 1]
    assert result.truncated.tolist() == [False] * 3
    assert result.errors == {}
    timings = result.timings
    assert timings.tokenize_s == pytest.approx(0.001)
    assert 0 <= timings.queue_s <= timings.total_s
    assert 0 <= timings.forward_s <= timings.total_s
    assert repr(result) == ("Embeddings(texts=3, dtype='float32', tokens=5, truncated=0, failed=0)")


@pytest.mark.parametrize("texts", ["abc", 7, None])
def test_embed_iter_takes_an_iterable_of_texts_only(engine: Engine, texts: Any) -> None:
    with pytest.raises(InvalidOption, match="iterable of texts"):
        engine.embed_iter(texts)


@pytest.mark.parametrize("chunk_size", [0, -1, True, 2.0, "8"])
def test_embed_iter_refuses_a_chunk_size_at_the_call(engine: Engine, chunk_size: Any) -> None:
    with pytest.raises(InvalidOption, match="chunk_size"):
        engine.embed_iter(["a"], chunk_size=chunk_size)


def test_embed_iter_of_nothing_gives_nothing(engine: Engine) -> None:
    assert list(engine.embed_iter([])) == []


def test_embed_iter_does_not_quantise_each_slice_by_ranges_of_its_own(engine: Engine) -> None:
    with pytest.raises(InvalidOption, match="quantize"):
        engine.embed_iter(["a"], output_dtype="int8")
    (matrix,) = engine.embed_iter(["a", "b"], output_dtype="binary")
    assert matrix.shape == (2, 1)


# Event loops and callbacks.


def test_event_loops_may_come_and_go(engine: Engine) -> None:
    for number in range(5):
        found = asyncio.run(engine.aembed([f"a{number}", "b"]))
        np.testing.assert_array_equal(found, vectors_for([f"a{number}", "b"]))


def test_one_call_a_loop_in_several_loops_at_once() -> None:
    runner = FakeRunner()
    with held_engine(runner) as engine:
        found: dict[int, np.ndarray] = {}

        def call(number: int) -> None:
            found[number] = asyncio.run(engine.aembed(f"a{number}"))

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        runner.wait_for_batches(1)
        runner.let()
        for number, thread in enumerate(threads):
            thread.join(PATIENCE_S)
            np.testing.assert_array_equal(found[number], vectors_for([f"a{number}"])[0])


def test_a_synchronous_call_works_inside_a_running_loop(engine: Engine) -> None:
    async def call() -> np.ndarray:
        return engine.embed(["a", "b"])

    np.testing.assert_array_equal(asyncio.run(call()), vectors_for(["a", "b"]))


def test_an_engine_is_an_async_context_manager() -> None:
    async def call() -> Engine:
        async with start_engine(FakeRunner()) as engine:
            await engine.aembed("a")
        return engine

    assert asyncio.run(call()).health == "closed"


def test_a_callback_may_submit_and_may_not_wait(engine: Engine) -> None:
    done = threading.Event()
    results: list[object] = []

    def callback(future: object) -> None:
        try:
            engine.embed("b")
        except EngineError as error:
            results.append(error)
        results.append(engine.submit("c"))
        done.set()

    engine.submit("a").add_done_callback(callback)
    assert done.wait(PATIENCE_S)
    error, future = results
    assert "use submit" in str(error)
    assert len(future.result(PATIENCE_S)) == 1  # type: ignore[attr-defined]


# Tokens.


def test_tokens_are_whole_and_have_the_prompt_and_the_special_tokens() -> None:
    with start_engine(FakeRunner(special_ends=([101], [102]), max_length=3)) as engine:
        a, b, asked = (int(token_ids(word)[0]) for word in ("a", "b", "ask:"))
        assert engine.tokenize(["a b", "b"]) == [[101, a, b, 102], [101, b, 102]]
        assert engine.tokenize(["a"], special_tokens=False) == [[a]]
        assert engine.tokenize(["a"], task="query", special_tokens=False) == [[asked, a]]
        assert engine.tokenize(["a"], prompt="b ", special_tokens=False) == [[b, a]]
        assert engine.tokenize([]) == []


def test_tokens_become_text_again(engine: Engine) -> None:
    assert engine.detokenize(engine.tokenize(["a b", "c"])) == ["a b", "c"]
    with pytest.raises(InvalidTokenIds) as caught:
        engine.detokenize([engine.tokenize(["a"])[0], [1]])
    assert caught.value.index == 1


@pytest.mark.parametrize(
    ("texts", "options", "error"),
    [
        ("a", {}, InvalidText),
        (["a", 7], {}, InvalidText),
        (["a"], {"task": "dance"}, UnknownTask),
        (["a"], {"prompt_name": "dance"}, UnknownPrompt),
    ],
)
def test_what_cannot_be_tokenised_is_refused(
    engine: Engine, texts: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.tokenize(texts, **options)


# What it tells.


def test_the_stats_add_up() -> None:
    runner = FakeRunner(shapes=(BatchShape(4),), not_finite_on=["nan"], max_batch_tokens=16)
    heard: list[BatchStats] = []
    with start_engine(runner) as engine:
        engine.add_stats_hook(heard.append)
        engine.embed([f"a{n} b" for n in range(10)])
        engine.embed("a query")
        engine.submit(["nan", "ok"]).result(PATIENCE_S)
        stats = engine.stats()
    assert stats.batches == len(heard) == len(runner.batches)
    assert stats.texts == 12
    assert stats.failed_texts == 1
    assert stats.cancelled_texts == 0
    assert stats.tokens == sum(batch.tokens for batch in heard) == 24
    assert stats.padded_tokens == sum(batch.padded_tokens for batch in heard) == 13 * 4 - 24
    assert stats.padding_waste == (13 * 4 - 24) / (13 * 4)
    assert sum(batch.interactive_texts for batch in heard) == 1
    assert sum(batch.bulk_texts for batch in heard) == 12
    assert sum(batch.failed_texts for batch in heard) == 1
    assert sum(batch.texts for batch in heard) == 13
    assert sum(batch.forward_s for batch in heard) == pytest.approx(stats.forward_s)
    assert sum(batch.tokenize_s for batch in heard) == pytest.approx(
        0.001 * runner.chunks_tokenized
    )
    assert all(batch.queue_s >= 0 for batch in heard)


def test_a_hook_that_raises_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[BatchStats] = []

    def broken(batch: BatchStats) -> None:
        raise ValueError("a metrics system is down")

    with start_engine(FakeRunner()) as engine:
        engine.add_stats_hook(broken)
        engine.add_stats_hook(heard.append)
        engine.embed("a")
        engine.remove_stats_hook(broken)
        engine.remove_stats_hook(broken)
        engine.embed("b")
        assert engine.health == "ready"
    assert len(heard) == 2
    assert caplog.text.count("a stats hook raised") == 1


def test_what_waits_is_counted_by_priority() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner) as engine:
        engine.submit([[1, 2, 3, 4]])
        runner.wait_for_batches(1)
        engine.submit([[1] * 10, [2] * 5])
        engine.submit([[1] * 7])
        stats = engine.stats()
        assert (stats.waiting_bulk_tokens, stats.waiting_interactive_tokens) == (15, 7)


def test_info_tells_the_model_how_it_runs_and_the_budgets() -> None:
    runner = FakeRunner(max_batch_tokens=77, max_length=9)
    with start_engine(runner, max_queue_tokens=500, max_query_wait_ms=20) as engine:
        info = engine.info()
    assert info.model.name == "fake/model"
    assert (info.device, info.dtype) == ("fake", "float32")
    assert (info.dimension, info.max_length) == (DIMENSION, 9)
    assert (info.execution, info.reason) == ("packed", "a fake has its own way")
    assert (info.max_batch_tokens, info.max_queue_tokens) == (77, 500)
    assert info.max_query_wait_ms == 20


def test_what_is_stateful_says_its_counts() -> None:
    runner = FakeRunner(max_batch_tokens=4)
    with held_engine(runner) as engine:
        engine.submit([[1, 2, 3, 4]])
        runner.wait_for_batches(1)
        engine.submit([[1] * 10], timeout=1000)
        while "ready_tokens=10" not in repr(engine._instance):
            pass  # until one of the engine's threads has taken it in
        assert repr(engine) == (
            "Engine('fake/model', device='fake', dtype='float32', execution='packed', "
            "health='ready')"
        )
        shown = repr(engine._instance)
        assert shown.startswith(
            "ModelInstance('fake/model', handles=1, EngineCore(health='ready', "
        )
        assert "pending_requests=2" in shown
        assert "interactive=RequestQueue(waiting_tokens=10, ready_tokens=10" in shown


def test_a_progress_bar_counts_every_text_once(engine: Engine) -> None:
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        engine.embed([f"a{n}" for n in range(30)], progress=True)
        asyncio.run(engine.aembed(["a", "b", "c"], progress=True))
        engine.embed("one text", progress=True)
    last: Sequence[str] = [line.split("\r")[-1] for line in shown.getvalue().strip().split("\n")]
    assert [line[: line.index("[")].split()[-1] for line in last] == ["30/30", "3/3", "1/1"]


def test_nothing_is_shown_unless_asked(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.embed(["a", "b"])
    assert capfd.readouterr() == ("", "")
