"""`millpond info`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import refusal, run, with_settings
from families import MAX_LENGTH, WIDTH

from millpond import Engine

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("bert")


def test_it_tells_what_the_engine_tells(folder: Path) -> None:
    with Engine(folder, device="cpu", dtype="float32") as engine:
        about = engine.info()
    facts = json.loads(run("info", folder, "--dtype", "float32", "--json").stdout)
    (route,) = facts["routes"]
    assert facts["model"] == str(folder)
    assert facts["dtype"] == "float32"
    assert facts["max_batch_tokens"] == about.max_batch_tokens
    assert route["modules"] == ["Transformer", "Pooling(mean)"]
    assert (route["dimension"], route["max_length"]) == (WIDTH, MAX_LENGTH)
    assert (route["execution"], route["reason"]) == (about.execution, about.reason)


def test_a_person_reads_a_fact_a_line(folder: Path) -> None:
    text = run("info", folder, "--max-length", 7).stdout
    facts = dict(line.split(maxsplit=1) for line in text.splitlines() if line[0] != " ")
    assert facts["model"] == str(folder)
    assert facts["dimensions"] == str(WIDTH)
    assert facts["longest"] == "text           7 tokens"
    assert "None" not in text


def test_saved_prompts_are_shown(folder: Path, tmp_path: Path) -> None:
    copy = with_settings(folder, tmp_path / "prompted", prompts={"query": "find: "})
    assert 'prompt query           "find: "' in run("info", copy).stdout
    assert json.loads(run("info", copy, "--json").stdout)["prompts"] == {"query": "find: "}


def test_a_length_that_cannot_be_is_refused(folder: Path) -> None:
    assert "max_length=0" in refusal("info", folder, "--max-length", 0)
