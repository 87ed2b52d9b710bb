"""The command itself: its help, its version, and how errors are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from command_line import refusal, run

import millpond
from millpond.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_it_has_these_commands() -> None:
    assert {"embed", "info"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    text = run(command, "--help").stdout
    _, _, example = text.partition("Example:\n")
    assert f"millpond {command} " in example.splitlines()[0]


def test_without_a_command_it_shows_its_help() -> None:
    assert run().stdout == run("--help").stdout == run("-h").stdout
    assert run().exit_code == 0


def test_it_tells_its_version() -> None:
    assert run("--version").stdout == f"millpond {millpond.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedd"], "No such command 'embedd'"),
        (["info"], "Missing argument 'MODEL'"),
        (["info", "x", "--dtyp", "float32"], "No such option: --dtyp"),
        (["info", "x", "--dtype", "float8"], "'float8' is not one of 'auto', 'float32'"),
        (["info", "x", "--max-length", "many"], "--max-length"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    line = refusal(*arguments)
    assert message in line
    assert line.endswith("--help'.")


def test_an_error_of_several_lines_is_told_in_one(tmp_path: Path) -> None:
    line = refusal("info", tmp_path / "nothing")
    assert str(tmp_path / "nothing") in line


PROGRAM = """
import sys
sys.argv = ["millpond", *{arguments}]
from millpond.cli import main
try:
    main()
except SystemExit as end:
    status = end.code
heavy = {{"torch", "transformers", "numpy", "pyarrow", "fastapi"}} & set(sys.modules)
print(status, *sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["embed", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(arguments=arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == "0\n"
    assert "Usage: millpond" in result.stdout


def test_it_runs_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "millpond", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"millpond {millpond.__version__}\n"


WITHOUT = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
sys.argv = ["millpond", *{arguments}]
from millpond.cli import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "hidden", "message"),
    [
        (["serve"], ["fastapi"], 'fastapi is not installed: pip install "millpond[server]"'),
        (
            ["embed", "in.jsonl", "-o", "out.npy"],
            ["orjson"],
            'orjson is not installed: pip install "millpond[cli]"',
        ),
        (
            ["embed", "in.txt", "-o", "out.parquet"],
            ["pyarrow"],
            'pyarrow is not installed: pip install "millpond[cli]"',
        ),
    ],
)
def test_a_missing_extra_is_named(
    arguments: list[str], hidden: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").touch()
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(arguments=arguments, hidden=hidden)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"millpond: error: {message}\n"
