"""`millpond embed --resume`: what was cut off goes on, and becomes the same file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from command_line import refusal, run, with_settings

from millpond import Engine
from millpond.cli.files.report import Report
from millpond.cli.flags import open_engine

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 300
MANY_ROWS = 3000  # more than are embedded before anyone can react to the first of them
CHUNK = 10


@pytest.fixture
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("bert")


def write_rows(path: Path, rows: int) -> Path:
    texts = (f"stone {number} " + "grinds " * (number % 7) for number in range(rows))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "in.jsonl", ROWS)


def arguments(folder: Path, source: Path, output: Path) -> list[str]:
    call = f"embed {source} -o {output} --model {folder} --dtype float32 --chunk-size {CHUNK}"
    return [*call.split(), "--device", "cpu"]


def wait_for_rows(progress: IO[bytes]) -> int:
    """Read a progress bar until it has shown rows on disk."""
    shown = b""
    while piece := progress.read1(200):  # type: ignore[attr-defined]
        shown += piece
        if found := re.search(rb", ([1-9][\d,]*) on disk", shown):
            return int(found[1].replace(b",", b""))
    raise AssertionError(shown.decode())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_a_killed_run_goes_on_to_the_same_bytes(kind: str, folder: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", MANY_ROWS)
    output, whole = tmp_path / f"out.{kind}", tmp_path / f"whole.{kind}"
    call = arguments(folder, source, output)
    with subprocess.Popen(
        [sys.executable, "-m", "millpond", *call, "--progress"], stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        counted = wait_for_rows(process.stderr)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    note = json.loads((tmp_path / f"out.{kind}.part.json").read_text(encoding="utf-8"))
    assert counted <= note["rows"] < MANY_ROWS

    resumed = run(*call, "--resume")
    assert f"{MANY_ROWS - note['rows']:,} texts in " in resumed.stderr
    assert f"with {note['rows']:,} from an earlier run" in resumed.stderr
    assert run(*arguments(folder, source, whole)).exit_code == 0
    assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_run_of_a_real_model_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    # Chunks that share batches with their neighbours, which a run that goes on has others of; in
    # the dtype that the processor likes best, whose sums may depend on the company.
    source, output, whole = write_rows(tmp_path / "in.jsonl", MANY_ROWS), "out.npy", "whole.npy"
    flags = ["--model", "sentence-transformers/all-MiniLM-L6-v2", "--chunk-size", "37"]
    flags += ["--device", "cpu"]
    call = ["embed", str(source), "-o", str(tmp_path / output), *flags]
    with subprocess.Popen(
        [sys.executable, "-m", "millpond", *call, "--progress"], stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        wait_for_rows(process.stderr)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert "from an earlier run" in run(*call, "--resume").stderr
    assert run("embed", source, "-o", tmp_path / whole, *flags).exit_code == 0
    assert (tmp_path / output).read_bytes() == (tmp_path / whole).read_bytes()


def test_every_run_asks_for_bits_that_depend_on_no_company(
    folder: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def opened(model: str, flags: Mapping[str, object], **options: Any) -> Engine:
        asked.append(flags["batch_invariant"])
        return open_engine(model, flags, **options)

    monkeypatch.setattr(sys.modules["millpond.cli.embed"], "open_engine", opened)
    run(*arguments(folder, source, tmp_path / "out.npy"))
    run(*arguments(folder, source, tmp_path / "again.npy"), "--no-batch-invariant")
    assert asked == [True, False]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Call `millpond` and press Ctrl-C when so many rows are there."""

    def call(*arguments: object, rows: int = 5 * CHUNK, stdin: str | None = None) -> str:
        def saved(report: Report, count: int) -> None:
            if report._output.rows >= rows:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Report, "saved", saved)
            result = run(*arguments, "--progress", stdin=stdin)
        assert result.exit_code == 130
        return result.stderr.splitlines()[-1]

    return call


@pytest.fixture
def left(folder: Path, source: Path, tmp_path: Path, interrupted: Callable[..., str]) -> list[str]:
    """The call of an interrupted run."""
    call = arguments(folder, source, tmp_path / "out.npy")
    assert interrupted(*call) == (
        "millpond: interrupted; 50 of 300 rows are on disk; the same command with --resume "
        "continues"
    )
    return call


def test_an_interrupted_run_goes_on(
    left: list[str], folder: Path, source: Path, tmp_path: Path
) -> None:
    assert "250 texts in " in run(*left, "--resume").stderr
    run(*arguments(folder, source, tmp_path / "whole.npy"))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_it_may_be_interrupted_again(
    left: list[str], interrupted: Callable[..., str], tmp_path: Path
) -> None:
    assert "100 of 300 rows" in interrupted(*left, "--resume", rows=100)
    assert "200 texts in " in run(*left, "--resume").stderr
    assert len(np.load(tmp_path / "out.npy")) == ROWS


def test_left_rows_are_not_thrown_away_unasked(left: list[str], tmp_path: Path) -> None:
    assert "an interrupted run left 50 rows" in refusal(*left)
    assert "300 texts in " in run(*left, "--restart").stderr
    assert len(np.load(tmp_path / "out.npy")) == ROWS


def test_resume_with_nothing_left_starts(folder: Path, source: Path, tmp_path: Path) -> None:
    call = arguments(folder, source, tmp_path / "out.npy")
    assert "300 texts in " in run(*call, "--resume").stderr


def test_a_run_that_was_cut_off_after_its_last_act_is_complete(
    left: list[str], tmp_path: Path
) -> None:
    note = tmp_path / "out.npy.part.json"
    run_before = json.loads(note.read_text(encoding="utf-8"))
    run(*left, "--resume")
    whole = (tmp_path / "out.npy").read_bytes()
    note.write_text(json.dumps({**run_before, "rows": ROWS}), encoding="utf-8")
    assert run(*left, "--resume").stderr.endswith("out.npy is already complete\n")
    assert (tmp_path / "out.npy").read_bytes() == whole
    assert not note.exists()


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--task", "query"], 'task null, now "query"'),
        (["--dimensions", "8"], "dimensions null, now 8"),
        (["--output-dtype", "float16"], 'output dtype "float32", now "float16"'),
        (["--dtype", "bfloat16"], 'dtype "float32", now "bfloat16"'),
        (["--max-length", "7"], ", now 7"),
        (["--chunk-size", "5"], "chunk size 10, now 5"),
        (["--output-format", "jsonl"], 'output format "npy", now "jsonl"'),
        (["--normalize"], "normalize null, now true"),
    ],
)
def test_other_flags_make_another_run(flags: list[str], name: str, left: list[str]) -> None:
    line = refusal(*left, *flags, "--resume")
    assert "out.npy cannot be resumed, it was started differently: " in line
    assert name in line


def test_another_input_makes_another_run(left: list[str], source: Path) -> None:
    lines = source.read_text(encoding="utf-8").replace("stone 299 ", "stone 298 ")
    source.write_text(lines, encoding="utf-8")
    assert 'differently: input "' in refusal(*left, "--resume")


def test_another_model_makes_another_run(
    left: list[str], folder: Path, tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    other = with_settings(folder, tmp_path / "other", prompts={"query": "find: "})
    line = refusal(*left, "--model", other, "--resume")
    assert f'model "{folder}", now "{other}"' in line
    assert 'model files "' in line


def test_standard_input_cannot_be_resumed_and_leaves_nothing(
    folder: Path, tmp_path: Path, interrupted: Callable[..., str]
) -> None:
    call = ["embed", "-", "-o", tmp_path / "out.npy", "--model", folder, "--chunk-size", 1]
    said = interrupted(*call, rows=2, stdin="one\ntwo\nthree\n")
    assert said == "millpond: interrupted; nothing was kept"
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_fails_is_named_by_its_place_in_the_file(
    folder: Path, tmp_path: Path, interrupted: Callable[..., str]
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("short\n" * 7 + "long " * 200, encoding="utf-8")
    call = ["embed", source, "-o", tmp_path / "out.npy", "--model", folder, "--chunk-size", 2]
    call += ["--truncate", "error"]
    interrupted(*call, rows=4)
    assert refusal(*call, "--resume").startswith("text 7: ")
    assert "an interrupted run left 6 rows" in refusal(*call)
