"""Running the command line in the tests' own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from typer.testing import CliRunner, Result

from millpond.cli import app

__all__ = ["ROWS", "TEXTS", "embed_as", "refusal", "rows_of", "run", "with_settings"]

TEXTS = [
    "the stone grinds the grain",
    "",
    "naïve café — 3.14 €",
    "two\u2028lines, says Unicode",
    " two  spaces ",
    "東京は日本の首都です。",
    "the stone grinds the grain",
]
ROWS = [{"id": number, "text": text, "tags": ["a", "b"]} for number, text in enumerate(TEXTS)]


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """Call `millpond` with these arguments; an exception that it does not tell is raised."""
    return CliRunner().invoke(
        app,
        [str(argument) for argument in arguments],
        input=stdin,
        catch_exceptions=False,
        prog_name="millpond",
    )


def embed_as(kind: str, source: Path, output: Path, model: Path, *flags: object) -> Result:
    """Embed a file in float32 on the CPU with this `--output-kind`."""
    call = ("embed", source, "-o", output, "-m", model, "--device", "cpu", "--dtype", "float32")
    return run(*call, "--output-kind", kind, *flags)


def refusal(*arguments: object, stdin: str | bytes | None = None) -> str:
    """The one line that a call is refused with."""
    result = run(*arguments, stdin=stdin)
    lines = result.stderr.splitlines()
    assert (result.exit_code, len(lines), result.stdout) == (2, 1, ""), result.output
    return lines[0].removeprefix("millpond: error: ")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of an output that has columns."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def with_settings(folder: Path, copy: Path, **settings: Any) -> Path:
    """The checkpoint in `folder` with other settings in its config_sentence_transformers.json."""
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    saved = copy / "config_sentence_transformers.json"
    saved.unlink()
    saved.write_text(json.dumps(settings), encoding="utf-8")
    return copy
