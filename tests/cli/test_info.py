"""`millpond info`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import refusal, run, with_settings
from families import MAX_LENGTH, WIDTH

from millpond import Engine, EngineConfig

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


def test_every_option_of_the_engine_has_a_flag(folder: Path) -> None:
    flags = ["--max-batch-tokens", 300, "--pooling", "cls", "--pooling", "max", "--device", "cpu"]
    facts = json.loads(run("info", folder, *flags, "--max-query-wait-ms", 5, "--json").stdout)
    assert facts["max_batch_tokens"] == 300
    assert facts["max_query_wait_ms"] == 5
    assert facts["routes"][0]["modules"] == ["Transformer", "Pooling(cls, max)"]
    help_text = " ".join(run("info", "--help").stdout.split())
    for option in dataclasses.fields(EngineConfig):
        if option.name not in ("model", "prompts"):
            assert f"--{option.name.replace('_', '-')}" in help_text
            assert option.metadata["help"] in help_text


@pytest.mark.slow
def test_a_flag_that_is_given_twice_names_two_devices(folder: Path) -> None:
    several = run("info", folder, "--device", "cpu", "--device", "cpu", "--json")
    assert json.loads(several.stdout)["device"] == "cpu, cpu"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--max-batch-tokens", "many", "max_batch_tokens='many'"),
        ("--pooling", "median", "choose among cls"),
        ("--prefix-cache", "on", "'on' is not one of"),
        ("--device", "qpu", "device='qpu' is not there"),
    ],
)
def test_an_option_of_the_engine_that_cannot_be_is_refused(
    flag: str, value: str, message: str, folder: Path
) -> None:
    assert message in refusal("info", folder, flag, value)


def test_a_length_that_cannot_be_is_refused(folder: Path) -> None:
    assert "max_length=0" in refusal("info", folder, "--max-length", 0)
