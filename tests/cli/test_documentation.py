"""docs/cli.md names every flag there is and none that is not; its outputs are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
from command_line import run

from millpond.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DOCUMENTED_ELSEWHERE = {"serve"}


def flags(command: str) -> set[str]:
    text = run(command, "--help").stdout if command else run("--help").stdout
    options = text.partition("\nOptions:\n")[2].partition("\nCommands:\n")[0]
    defined = re.findall(r"^  (-.*?)(?:  |$)", options, flags=re.MULTILINE)
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(defined))) - {"-h"}


def section(command: str) -> str:
    start = PAGE.index(f"## `millpond {command}`")
    return PAGE[start:].partition("\n## ")[0] + PAGE[PAGE.index("## The model") :]


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - DOCUMENTED_ELSEWHERE))
def test_every_flag_is_in_the_section_of_its_command(command: str) -> None:
    wanted = flags(command) - {"--help"}
    assert len(wanted) >= 6
    assert {flag for flag in wanted if f"`{flag}`" not in section(command)} == set()


def test_every_flag_of_the_page_exists() -> None:
    everything = set().union(*map(flags, ["", *set(COMMANDS) - DOCUMENTED_ELSEWHERE]))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert named - everything == set()


def test_every_command_is_in_the_table() -> None:
    assert {name for name in COMMANDS if f"`millpond {name}`" not in PAGE} == set()


@pytest.mark.slow
def test_the_facts_shown_are_those_of_the_model() -> None:
    _, _, block = PAGE.partition("## `millpond info`")
    _, facts = re.findall(r"```\w*\n(.*?)```", block, flags=re.DOTALL)[:2]
    found = run("info", "sentence-transformers/all-MiniLM-L6-v2", "--device", "cpu").stdout
    for line in facts.splitlines():
        # The first three are the processor's and the machine's.
        if not line.startswith(("dtype", "batch invariant", "path", "…")):
            assert line in found.splitlines()
