"""`millpond embed` from and to what is no file: pipes, devices, descriptors and closed ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import TEXTS, refusal, rows_of, run

from millpond import Engine
from millpond.cli.files.streams import StreamOutput, can_be_read_again, is_stream

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs"),
]

WRITTEN: dict[str, Callable[[list[str]], str]] = {
    "text": "\n".join,
    "jsonl": lambda texts: "\n".join(json.dumps({"text": text}) for text in texts),
    "csv": lambda texts: "\n".join(["text", *texts]),
    "tsv": lambda texts: "\n".join(["text\tn", *(f"{text}\t1" for text in texts)]),
}


@pytest.fixture
def pipe() -> Callable[[str], int]:
    """The reading end of a pipe that holds a text."""

    def make(content: str) -> int:
        reading, writing = os.pipe()
        os.write(writing, content.encode())
        os.close(writing)
        return reading

    return make


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_pipe_that_is_an_input_is_read_once(
    kind: str,
    pipe: Callable[[str], int],
    embed: Callable[..., str],
    engine: Engine,
    tmp_path: Path,
) -> None:
    number = pipe(WRITTEN[kind](["one", "two"]))
    said = embed(f"/dev/fd/{number}", tmp_path / "out.npy", "--input-format", kind)
    os.close(number)
    assert "2 texts in" in said
    assert np.array_equal(np.load(tmp_path / "out.npy"), engine.embed(["one", "two"]))
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


@pytest.mark.parametrize("is_link", [False, True])
def test_a_fifo_is_read_once(is_link: bool, embed: Callable[..., str], tmp_path: Path) -> None:
    fifo = tmp_path / "in.txt"
    os.mkfifo(fifo)
    if is_link:
        (tmp_path / "link.txt").symlink_to(fifo)
    writer = threading.Thread(target=fifo.write_text, args=("one\ntwo\n",))
    writer.start()
    said = embed(tmp_path / "link.txt" if is_link else fifo, tmp_path / "out.npy")
    writer.join()
    assert "2 texts in" in said
    assert len(np.load(tmp_path / "out.npy")) == 2


def test_a_descriptor_of_a_file_goes_on_from_where_it_is(
    embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\nthree", encoding="utf-8")
    number = os.open(tmp_path / "in.txt", os.O_RDONLY)
    os.read(number, len("one\n"))
    embed(f"/dev/fd/{number}", tmp_path / "out.npy")
    os.close(number)
    assert np.array_equal(np.load(tmp_path / "out.npy"), engine.embed(["two", "three"]))


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_standard_input_by_its_other_names(
    name: str, embed: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    embed(name, tmp_path / "out.npy", stdin="one\ntwo\n")
    assert np.array_equal(np.load(tmp_path / "out.npy"), engine.embed(["one", "two"]))


def test_a_link_to_standard_input_is_standard_input(
    embed: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "in.txt").symlink_to("/dev/stdin")
    assert "2 texts in" in embed(tmp_path / "in.txt", tmp_path / "out.npy", stdin="one\ntwo\n")


def test_what_is_no_file_cannot_be_read_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    names = ["/dev/stdin", "/dev/fd/7", f"/proc/{os.getpid()}/fd/7", "/dev/null"]
    for path in [None, *map(Path, names), tmp_path / "fifo"]:
        assert not can_be_read_again(path)
    for path in [tmp_path, tmp_path / "file", tmp_path / "nothing"]:
        assert can_be_read_again(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input-format", "parquet"], "Parquet cannot be read from /dev/fd/{}: name a file"),
        (["--resume"], "/dev/fd/{} cannot be read twice, so --resume needs a file as IN"),
    ],
)
def test_what_takes_a_second_reading_is_refused(
    flags: list[str], message: str, pipe: Callable[[str], int], tmp_path: Path
) -> None:
    number = pipe("one")
    line = refusal("embed", f"/dev/fd/{number}", "-o", tmp_path / "out.npy", *flags)
    os.close(number)
    assert line == message.format(number)
    assert list(tmp_path.iterdir()) == []


def test_a_descriptor_that_is_not_open_is_refused(prompted: Path, tmp_path: Path) -> None:
    line = refusal("embed", "/dev/fd/999", "-o", tmp_path / "out.npy", "--model", prompted)
    assert line == "/dev/fd/999: Bad file descriptor"
    assert list(tmp_path.iterdir()) == []


# Out.


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_rows_go_to_standard_output_and_words_to_the_other(
    name: str, prompted: Path, inputs: dict[str, Path], engine: Engine, tmp_path: Path
) -> None:
    flags = ("--model", prompted, "--dtype", "float32", "--chunk-size", 3, "--progress")
    result = run("embed", inputs["jsonl"], "-o", name, *flags)
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.split("\n")[:-1]]
    vectors = np.array([row.pop("embedding") for row in rows], dtype=np.float32)
    assert np.array_equal(vectors, engine.embed(TEXTS))
    assert [row["id"] for row in rows] == list(range(len(TEXTS)))
    assert "7 written" in result.stderr
    assert "7 texts in " in result.stderr
    assert sorted(tmp_path.iterdir()) == sorted(inputs.values())


def test_rows_go_into_a_pipe(
    prompted: Path, inputs: dict[str, Path], engine: Engine, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    received: list[bytes] = []

    def receive() -> None:
        with os.fdopen(reading, "rb") as file:
            received.append(file.read())

    receiver = threading.Thread(target=receive)
    receiver.start()
    flags = ("--model", prompted, "--dtype", "float32", "--vectors-only")
    result = run("embed", inputs["txt"], "-o", f"/dev/fd/{writing}", *flags)
    os.close(writing)
    receiver.join()
    assert (result.exit_code, result.stdout) == (0, "")
    vectors = [json.loads(line)["embedding"] for line in received[0].splitlines()]
    assert np.array_equal(np.array(vectors, dtype=np.float32), engine.embed(TEXTS))


def test_rows_go_into_a_fifo(embed: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    (tmp_path / "in.txt").write_text("one\ntwo", encoding="utf-8")
    received: list[bytes] = []
    receiver = threading.Thread(
        target=lambda: received.append((tmp_path / "out").read_bytes()), daemon=True
    )
    receiver.start()
    embed(tmp_path / "in.txt", tmp_path / "out")
    receiver.join()
    (tmp_path / "rows.jsonl").write_bytes(received[0])
    assert [row["text"] for row in rows_of(tmp_path / "rows.jsonl")] == ["one", "two"]
    assert is_stream(tmp_path / "out")


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("-", ["--output-format", "npy"], "npy cannot be written to standard output"),
        ("-", ["--output-format", "parquet"], "parquet cannot be written to standard output"),
        ("/dev/null", ["--output-format", "npy"], "written to /dev/null, which is not a file"),
        ("-", ["--resume"], "so --resume needs a file"),
        ("/dev/fd/1", ["--resume"], "so --resume needs a file"),
        ("/dev/fd/999", [], "/dev/fd/999: Bad file descriptor"),
        ("/dev/full", [], "/dev/full: No space left on device"),
    ],
)
def test_what_a_stream_cannot_be_is_refused(
    output: str, flags: list[str], message: str, prompted: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("text", encoding="utf-8")
    flags = [*flags, "--model", str(prompted)]
    assert message in refusal("embed", tmp_path / "in.txt", "-o", output, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_bad_row_writes_nothing_to_standard_output(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{', encoding="utf-8")
    line = refusal("embed", tmp_path / "in.jsonl", "-o", "-", "--model", tmp_path / "no model")
    assert "in.jsonl, line 2" in line


def test_a_stream_tells_how_much_was_written() -> None:
    output = StreamOutput(Path("/dev/null"))
    output.append(b"row\n", rows=1)
    output.close()
    assert repr(output) == "StreamOutput('/dev/null', rows=1)"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `millpond …` as a shell does."""
    script = command.replace("millpond", f"{sys.executable} -m millpond")
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_who_reads_no_more_ends_the_run_without_a_word(prompted: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("stone\n" * 4000, encoding="utf-8")
    call = f"millpond embed in.txt -o - --chunk-size 8 --model {prompted}"
    result = shell(f"{call} | head -n 1 | wc -l; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert (result.stdout.split(), result.stderr) == (["1", "141"], "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("embed - -o out.npy <&-", "standard input is closed: name a file as IN"),
        ("embed in.txt -o - >&-", "standard output is closed: name a file after -o"),
    ],
)
def test_a_closed_stream_is_refused(
    call: str, message: str, prompted: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("text", encoding="utf-8")
    words = call.split()
    result = shell(" ".join(["millpond", *words, "--model", str(prompted)]), tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"millpond: error: {message}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
