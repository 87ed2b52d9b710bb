"""Stands for `pip` where a page's install lines are tested: there is something to install.

A path must hold a project, a name must be one of the project's or have a tested version, and an
extra must be declared. `make test-install` runs the README's lines in earnest.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT, *sorted(ROOT.glob("integrations/*/"))]
WITH_A_VALUE = ("--index-url", "--extra-index-url")


def project(folder: Path) -> dict[str, Any]:
    """What a folder's pyproject.toml says of the project."""
    with (folder / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def names() -> dict[str, dict[str, Any]]:
    """What can be installed by name: the project's own, and what is tested with."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = {name: {} for name in re.findall(r"^([\w.-]+)==", pinned, re.MULTILINE)}
    return tested | {each["name"]: each for each in map(project, PROJECTS)}


def check(requirement: str) -> None:
    """Exit with an error for what could not be installed."""
    name, _, rest = requirement.partition("[")
    extras = [extra.strip() for extra in rest.rstrip("]").split(",") if extra]
    if name.startswith("."):
        found = project(ROOT / name)
    elif name in names():
        found = names()[name]
    else:
        sys.exit(f"nothing is known of {name!r}")
    missing = set(extras) - set(found.get("optional-dependencies", ()))
    if missing:
        sys.exit(f"{name} has no extra {', '.join(missing)}")


def main(arguments: list[str]) -> None:
    if arguments[0] != "install":
        sys.exit(f"pip {arguments[0]} is not an install line")
    rest = iter(arguments[1:])
    for argument in rest:
        if argument in WITH_A_VALUE:
            next(rest)
        elif not argument.startswith("-"):
            check(argument)


if __name__ == "__main__":
    main(sys.argv[1:])
