"""Texts of ingestion tokenised in another process have the same ids, whatever happens to it."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_models import TokenizerToSend, fails_to_load
from fakes import PATIENCE_S, FakeRunner, FakeTokenizer, fake_spec, vectors_for
from left_behind import is_alive, nothing_left_behind, wait_until_gone

from millpond import Engine, TextTooLong
from millpond.engine import tokenizer_process
from millpond.engine.tokenizer_process import TokenizerProcess
from millpond.pair import Pair

pytestmark = pytest.mark.slow

TEXTS = [f"text {number} of {number % 7}" for number in range(200)]
OPTIONS: dict[str, Any] = {"prompt": "", "task": None, "truncate": None, "max_length": None}
PAIR_OPTIONS = {name: value for name, value in OPTIONS.items() if name != "task"}


@pytest.fixture
def tokenizer() -> TokenizerToSend:
    return TokenizerToSend()


@pytest.fixture
def process(tokenizer: TokenizerToSend) -> Iterator[TokenizerProcess]:
    """Ready, and nothing was asked of this process's own tokenizer yet."""
    with nothing_left_behind():
        made = started(tokenizer)
        yield made
        made.close()


def started(*tokenizers: TokenizerToSend) -> TokenizerProcess:
    """A process whose child has said that it is ready, or has ended."""
    (made,) = TokenizerProcess.several(tokenizers, "on", devices=["cpu"])
    made.start()
    wait_for(made)
    return made


def wait_for(process: TokenizerProcess) -> None:
    assert process._child is not None
    readable, _, _ = select.select([process._child.connection], [], [], PATIENCE_S)
    assert readable


def rows(tokens: Any) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])]


def test_the_ids_are_the_tokenizers_own(
    process: TokenizerProcess, tokenizer: TokenizerToSend
) -> None:
    long = ["one two three four five six seven eight nine", *TEXTS]
    for options in (OPTIONS, {**OPTIONS, "prompt": "query: "}, {**OPTIONS, "truncate": "start"}):
        found = process.call(0, "encode", long, options)
        assert tokenizer.texts == 0
        expected = TokenizerToSend().encode(long, **options)
        assert rows(found) == rows(expected)
        assert found.truncated.tolist() == expected.truncated.tolist()
    pairs = [Pair(text, text[::-1]) for text in TEXTS]
    found = process.call(0, "encode_pairs", pairs, PAIR_OPTIONS)
    assert rows(found) == rows(TokenizerToSend().encode_pairs(pairs, **PAIR_OPTIONS))
    assert process.texts == 3 * len(long) + len(pairs)


def test_each_route_has_its_own(tokenizer: TokenizerToSend) -> None:
    with nothing_left_behind():
        process = started(tokenizer, TokenizerToSend(most_tokens=3))
        assert max(process.call(0, "encode", TEXTS, OPTIONS).lengths) == 4
        assert max(process.call(1, "encode", TEXTS, OPTIONS).lengths) == 3
        assert process.texts == 2 * len(TEXTS)
        process.close()


def test_short_calls_and_what_cannot_be_sent_stay_here(
    process: TokenizerProcess, tokenizer: TokenizerToSend
) -> None:
    class Local(str):
        """Of a class that another process cannot find."""

    few = TEXTS[:100]
    assert sum(map(len, few)) < tokenizer_process.FEWEST_CHARACTERS
    process.call(0, "encode", few, OPTIONS)
    assert tokenizer.texts == len(few)
    local = [Local(text) for text in TEXTS]
    assert rows(process.call(0, "encode", local, OPTIONS)) == rows(
        TokenizerToSend().encode(TEXTS, **OPTIONS)
    )
    assert process.texts == 0
    process.call(0, "encode", TEXTS, OPTIONS)  # nor does it harm what comes next
    assert process.texts == len(TEXTS)


def test_what_raises_there_is_read_here(
    process: TokenizerProcess, tokenizer: TokenizerToSend
) -> None:
    unlike = [*TEXTS, "unlike"]
    assert (
        rows(process.call(0, "encode", unlike, OPTIONS))[-1]
        == rows(TokenizerToSend().encode(["unlike"], **OPTIONS))[0]
    )
    assert tokenizer.texts == len(unlike)
    long = [*TEXTS, "one two three four five six seven eight nine"]
    with pytest.raises(TextTooLong) as error:
        process.call(0, "encode", long, {**OPTIONS, "truncate": "error"})
    assert error.value.index == len(TEXTS)
    process.call(0, "encode", TEXTS, OPTIONS)
    assert process.texts == len(TEXTS)


def test_a_killed_process_costs_no_text(
    process: TokenizerProcess, tokenizer: TokenizerToSend, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "millpond"):
        found = process.call(0, "encode", [*TEXTS, "die"], OPTIONS)
        assert rows(found)[:-1] == rows(TokenizerToSend().encode(TEXTS, **OPTIONS))
        process.call(0, "encode", TEXTS, OPTIONS)
    assert tokenizer.texts == 2 * len(TEXTS) + 1
    (record,) = caplog.records
    assert "was killed by SIGKILL" in record.message
    assert "in this process from now on" in record.message
    assert process.pid is None


def test_one_that_was_killed_while_it_waited_costs_no_text(
    process: TokenizerProcess, tokenizer: TokenizerToSend
) -> None:
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(process)
    process.call(0, "encode", TEXTS, OPTIONS)
    assert tokenizer.texts == len(TEXTS)
    wait_until_gone(pid)


@pytest.mark.parametrize("what", ["no checkpoint", "no process"])
def test_where_it_cannot_be_had_this_process_goes_on(
    what: str,
    tokenizer: TokenizerToSend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if what == "no process":
        monkeypatch.setattr("sys.frozen", True, raising=False)
        expected = "no process can be started"
    else:
        tokenizer.reader = lambda: fails_to_load
        expected = "the checkpoint is gone"
    with nothing_left_behind(), caplog.at_level(logging.WARNING, "millpond"):
        (process,) = TokenizerProcess.several([tokenizer], "on", devices=["cpu"])
        process.start()
        if what == "no checkpoint":
            wait_for(process)
        for _ in range(2):
            process.call(0, "encode", TEXTS, OPTIONS)
        assert tokenizer.texts == 2 * len(TEXTS)
        (record,) = caplog.records
        assert expected in record.message


def test_it_is_not_waited_for(tokenizer: TokenizerToSend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_process, "PROGRAM", "child_that_never_is_ready")
    with nothing_left_behind():
        (process,) = TokenizerProcess.several([tokenizer], "on", devices=["cpu"])
        process.start()
        pid = process.pid
        assert pid is not None
        process.call(0, "encode", TEXTS, OPTIONS)
        assert tokenizer.texts == len(TEXTS)
        process.close()
        process.close()
        process.call(0, "encode", TEXTS, OPTIONS)
        assert tokenizer.texts == 2 * len(TEXTS)
        assert not is_alive(pid)


def test_by_itself_they_feed_others_where_processors_are_many(
    tokenizer: TokenizerToSend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(asked: Any, *, processors: int, devices: Sequence[str]) -> list[bool]:
        """Of each whether it rests beside queries."""
        monkeypatch.setattr(tokenizer_process, "host_processors", lambda: processors)
        found = TokenizerProcess.several([tokenizer], asked, devices=devices)
        return [each.rests_beside_queries for each in found]

    gpus = [f"cuda:{number}" for number in range(4)]
    assert made("auto", processors=3, devices=gpus[:1]) == []
    assert made("auto", processors=4, devices=gpus[:1]) == [False]
    assert made("auto", processors=8, devices=gpus[:1]) == [False, False]
    assert made("auto", processors=64, devices=gpus[:1]) == [False, False, True, True]
    assert made("auto", processors=16, devices=gpus) == [False] * 4
    assert made("auto", processors=64, devices=["cpu", "cpu"]) == [False] * 4
    assert made("auto", processors=64, devices=["cpu"]) == []
    assert made("on", processors=1, devices=["cpu"]) == [False]
    assert made("on", processors=64, devices=gpus[:2]) == [False] * 4 + [True] * 4
    assert made("off", processors=64, devices=gpus) == []
    unknown = FakeTokenizer(FakeRunner())
    assert TokenizerProcess.several([tokenizer, unknown], "on", devices=gpus) == []
    monkeypatch.setattr(tokenizer_process, "can_start_children", lambda: False)
    assert made("on", processors=64, devices=gpus) == []


def test_an_engine_tokenises_ingestion_there_and_queries_here(
    tokenizer: TokenizerToSend,
) -> None:
    runner = FakeRunner(max_batch_tokens=4096)
    with nothing_left_behind():
        options: dict[str, Any] = {"tokenizers": [tokenizer], "tokenizer_process": "on"}
        with Engine.with_runner(runner, fake_spec(runner), **options) as engine:
            assert engine.info().tokenizer_processes == 1
            expected = engine.embed(TEXTS, priority="bulk")
            (process,) = engine._instance._tokenizer_processes
            wait_for(process)
            pid = process.pid
            assert pid is not None
            tokenizer.texts = 0
            np.testing.assert_array_equal(engine.embed(TEXTS, priority="bulk"), expected)
            assert process.texts == len(TEXTS)
            assert tokenizer.texts == 0
            engine.embed(TEXTS, priority="interactive")
            assert tokenizer.texts == len(TEXTS)
        del engine, process
        wait_until_gone(pid)


def test_with_several_every_text_has_its_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_process, "host_processors", lambda: 16)
    runners = [FakeRunner(max_batch_tokens=512) for _ in range(2)]
    tokenizer = TokenizerToSend()
    many = [f"{text} {number}" for number in range(20) for text in TEXTS]
    with (
        nothing_left_behind(),
        Engine.with_runner(runners, fake_spec(runners[0]), tokenizers=[tokenizer]) as engine,
    ):
        processes = engine._instance._tokenizer_processes
        assert engine.info().tokenizer_processes == len(processes) == 4
        for _ in range(3):
            found = engine.embed(many, priority="bulk")
            np.testing.assert_array_equal(found, vectors_for(many))
        pids = [process.pid for process in processes if process.pid is not None]
        assert pids
        os.kill(pids[0], signal.SIGKILL)
        found = engine.embed(many, priority="bulk")
        np.testing.assert_array_equal(found, vectors_for(many))


PROGRAM = """
import os, signal, sys
sys.path[:0] = {paths!r}
from child_models import TokenizerToSend
from fakes import FakeRunner, fake_spec
from millpond import Engine
runner = FakeRunner(max_batch_tokens=4096)
engine = Engine.with_runner(
    runner, fake_spec(runner), tokenizers=[TokenizerToSend()], tokenizer_process="on"
)
texts = [f"text {{number}}" for number in range(3000)]
engine.embed(texts, priority="bulk")
pid = engine._instance._tokenizer_processes[0].pid
print(pid, flush=True)
{then}
"""
FORK = """
if os.fork() == 0:
    engine.embed(texts, priority="bulk")
    print(engine._instance._tokenizer_processes[0].pid, flush=True)
    sys.exit()
os.wait()
os.kill(pid, 0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("then", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()", FORK])
def test_it_ends_with_its_engines_process_however_that_ends(then: str) -> None:
    paths = [str(Path(__file__).parents[1] / "support")]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(paths=paths, then=then)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.stderr == ""
    pids = set(map(int, result.stdout.split()))
    assert len(pids) == 1 + ("fork" in then)
    for pid in pids:
        wait_until_gone(pid)
