"""The virtual environments of the peers, under `.venv-bench/`.

    python -m benchmarks.peers.environments [NAME …]

Peers ask for versions that exclude each other, so each list in `requirements/` gets one of its own.
It is installed once and again when the list changes. One that cannot be installed leaves its error
behind, and its peers are listed with it. Only the standard library is used.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = Path(__file__).parent / "requirements"
FOLDER = ROOT / ".venv-bench"
COMMON = "common"
PROJECT = ("-e", ".", "./integrations/langchain", "./integrations/llama-index")
LINES_OF_ERROR = 6


class SetUpFailed(Exception):
    """An environment that could not be made; the message ends with what pip said."""


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return FOLDER / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def error(name: str) -> str | None:
    """Why an environment is not there; None when it is."""
    failure = FOLDER / f"{name}.error"
    if failure.exists():
        return failure.read_text()
    return None if python(name).exists() else "its environment was not set up"


def set_up(name: str) -> None:
    """Make an environment, or leave it when its list has not changed since. Raises SetUpFailed."""
    wanted = LISTS / f"{name}.txt"
    stamp = FOLDER / name / ".ready"
    digest = hashlib.sha256(wanted.read_bytes() + _constraints(name)).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    print(f"Setting up {name}; this takes some minutes the first time.", flush=True)
    venv.create(FOLDER / name, with_pip=True)
    _pip(name, "--no-deps", "-r", str(wanted))
    stamp.write_text(digest)


def set_up_all(names: Sequence[str]) -> None:
    """The environments of these names; the error of one does not stop the others.

    Raises SetUpFailed for the common one.
    """
    for name in names:
        failure = FOLDER / f"{name}.error"
        failure.unlink(missing_ok=True)
        try:
            set_up(name)
        except SetUpFailed as failed:
            if name == COMMON:
                raise
            failure.write_text(str(failed))
            print(f"{name} cannot be set up: {failed}", flush=True)
    # Millpond as it is in this folder, and the adapters as users get them.
    _pip(COMMON, "--no-deps", "--no-build-isolation", *PROJECT)


def _constraints(name: str) -> bytes:
    return (ROOT / "constraints.txt").read_bytes() if name == COMMON else b""


def _pip(name: str, *arguments: str) -> None:
    command = [str(python(name)), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise SetUpFailed("\n".join(lines[-LINES_OF_ERROR:]))


if __name__ == "__main__":
    try:
        set_up_all(sys.argv[1:] or sorted(path.stem for path in LISTS.glob("*.txt")))
    except SetUpFailed as failed:
        sys.exit(f"the benchmark's environment cannot be set up:\n{failed}")
