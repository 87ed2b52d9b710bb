"""The lists that the peers' environments are made of: installed as they stand, they suffice."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTS = sorted((ROOT / "benchmarks/peers/requirements").glob("*.txt"))
PROJECTS = (".", "integrations/langchain", "integrations/llama-index")


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_every_file_that_a_list_names_is_there(path: Path) -> None:
    named = [line.split()[1] for line in lines(path) if re.match(r"-[cr] ", line)]
    assert all((path.parent / name).exists() for name in named)


@pytest.mark.parametrize("project", PROJECTS)
def test_the_project_can_be_built_with_what_is_listed(project: str) -> None:
    """They are installed with `--no-build-isolation`."""
    listed = set(lines(ROOT / "benchmarks/peers/requirements/common.txt"))
    build = tomllib.loads((ROOT / project / "pyproject.toml").read_text())["build-system"]
    assert {re.split(r"[<>=~! ]", name)[0] for name in build["requires"]} <= listed
