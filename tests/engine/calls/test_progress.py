"""Progress of a call: told after every batch, to a function or on a bar."""

from __future__ import annotations

import asyncio
import io
import logging
from typing import Any

import numpy as np
import pytest
from fakes import FakeRunner, start_engine

from millpond import CallProgress, InvalidOption
from millpond.engine.calls.progress import ProgressBar

TEXTS = [f"a{number} " * (number % 5 + 1) for number in range(40)]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_is_told_of_every_batch_of_its_call(is_async: bool) -> None:
    told: list[CallProgress] = []
    runner = FakeRunner(max_batch_tokens=16)
    with start_engine(runner) as engine:
        if is_async:
            found = asyncio.run(engine.aembed(TEXTS, progress=told.append))
        else:
            found = engine.embed(TEXTS, progress=told.append)
        batches = engine.stats().batches
        assert np.array_equal(found, engine.embed(TEXTS))
    assert len(told) >= batches > 5
    assert sum(progress.texts for progress in told) == len(TEXTS)
    assert sum(progress.share for progress in told) == pytest.approx(1)
    assert all(progress.truncated == 0 for progress in told)


def test_embed_iter_tells_of_every_batch_before_a_chunk_is_there() -> None:
    told: list[CallProgress] = []
    with start_engine(FakeRunner(max_batch_tokens=16)) as engine:
        chunks = engine.embed_iter(TEXTS, chunk_size=len(TEXTS), progress=told.append)
        next(chunks)
    assert len(told) > 5
    assert sum(progress.texts for progress in told) == len(TEXTS)


def test_a_function_is_told_of_texts_cut_short_in_place_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[CallProgress] = []
    texts = ["a b c d", "a", "a b c d e"]
    with (
        start_engine(FakeRunner(max_length=3)) as engine,
        caplog.at_level(logging.WARNING, "millpond"),
    ):
        engine.embed(texts, progress=told.append)
        list(engine.embed_iter(texts, progress=told.append))
        assert sum(progress.truncated for progress in told) == 4
        assert caplog.records == []
        engine.embed(texts)  # which nobody else reports
        engine.embed(texts, progress=True)
        assert [record.getMessage()[:12] for record in caplog.records] == ["2 of 3 texts"]
        assert engine.stats().truncated_texts == 8


@pytest.mark.parametrize("progress", ["yes", 1, None])
def test_what_is_no_progress_is_refused(progress: Any) -> None:
    message = "it must be True, False or a function"
    with start_engine(FakeRunner()) as engine, pytest.raises(InvalidOption, match=message):
        engine.embed(["a"], progress=progress)


def bar(**options: Any) -> ProgressBar:
    return ProgressBar(file=io.StringIO(), **options)


def test_the_time_left_is_told_by_the_work_and_not_by_the_texts() -> None:
    shown = bar(total=100)
    shown.start_t = shown._time() - 10.0
    assert "<?" in str(shown)
    shown.advance(CallProgress(texts=2, truncated=0, share=0.5))  # the longest
    assert shown.n == 2
    assert shown.format_dict["time_left"] in ("00:10", "00:09")
    shown.advance(CallProgress(texts=98, truncated=0, share=0.5))
    assert shown.format_dict["time_left"] == "00:00"
    assert "100/100" in str(shown)


def test_a_bar_of_an_unknown_length_counts() -> None:
    shown = bar(total=None)
    shown.advance(CallProgress(texts=3, truncated=0, share=0.0))
    assert str(shown).startswith("3text [")
