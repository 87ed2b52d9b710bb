"""`PartialOutput`: whatever moment a run is cut off at, the next one makes the same file of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millpond.cli.errors import CommandError
from millpond.cli.files.npy import NpyEncoding
from millpond.cli.files.parquet import ParquetEncoding
from millpond.cli.files.partial_output import PartialOutput, rows_written
from millpond.cli.files.rows import Encoding, Rows
from millpond.cli.files.text import JsonLinesEncoding

FINGERPRINT = {"input": "abc", "chunk size": 2}
VECTORS = np.arange(15, dtype=np.float32).reshape(5, 3)
EMPTY = VECTORS[:0]
CHUNK = 2
ENCODINGS: dict[str, Encoding] = {
    "npy": NpyEncoding(),
    "jsonl": JsonLinesEncoding(new_column="vector"),
    "parquet": ParquetEncoding(new_column="vector"),
}


def rows_from(first: int) -> Rows:
    records: list[dict[str, Any]] = [{"id": n} for n in range(first, min(first + CHUNK, 5))]
    return Rows(texts=[str(record) for record in records], columns=records)


def complete(output: Path, encoding: Encoding) -> None:
    """What a run does, from nothing or from what an earlier one left."""
    if rows_written(output) is None:
        head = encoding.head(Rows(texts=[], columns=[]), EMPTY)
        partial = PartialOutput.start(output, head, FINGERPRINT)
    else:
        resumed = PartialOutput.resume(output, FINGERPRINT, rows=len(VECTORS))
        if resumed is None:
            return
        partial = resumed
    while partial.rows < len(VECTORS):
        rows = rows_from(partial.rows)
        vectors = VECTORS[partial.rows : partial.rows + CHUNK]
        partial.append(encoding.encode(rows, vectors), rows=len(rows))
    partial.publish(encoding.finish(partial.part, EMPTY, rows=partial.rows))


class Killed(BaseException):
    """The process is gone; nothing that follows happens."""


class Countdown:
    """Ends the process at its nth call that changes the disk, before or after the call."""

    def __init__(self, calls: int, *, after: bool) -> None:
        self.calls_left = calls
        self.after = after

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls_left -= 1
            if self.calls_left < 0 and not self.after:
                raise Killed
            result = call(*arguments, **options)
            if self.calls_left < 0:
                raise Killed
            return result

        return counted


@pytest.fixture
def killed_at() -> Iterator[Callable[..., pytest.MonkeyPatch]]:
    """Let the process end at a call. What comes after its end changes nothing either."""
    patch = pytest.MonkeyPatch()

    def arm(calls: int, *, after: bool) -> pytest.MonkeyPatch:
        countdown = Countdown(calls, after=after)
        for owner, name in [
            (os, "fsync"),
            (os, "replace"),
            (os, "truncate"),
            (Path, "unlink"),
            (Path, "write_bytes"),
        ]:
            patch.setattr(owner, name, countdown.around(getattr(owner, name)))
        return patch

    yield arm
    patch.undo()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_a_run_cut_off_anywhere_goes_on_to_the_same_bytes(
    name: str,
    after: bool,
    tmp_path: Path,
    killed_at: Callable[..., pytest.MonkeyPatch],
) -> None:
    whole = tmp_path / f"whole.{name}"
    complete(whole, ENCODINGS[name])
    kills = 0
    while True:
        output = tmp_path / f"cut{kills}.{name}"
        patch = killed_at(kills, after=after)
        try:
            complete(output, ENCODINGS[name])
        except Killed:
            kills += 1
        else:
            break
        finally:
            patch.undo()
        published = output.exists()
        if published:
            assert output.read_bytes() == whole.read_bytes()
        complete(output, ENCODINGS[name])
        assert output.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob("cut*.part*"))
    assert kills > 15


def test_rows_that_are_safe_are_not_done_again(tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    partial = PartialOutput.start(output, b"head", FINGERPRINT)
    partial.append(b"ab", rows=2)
    assert repr(partial) == f"PartialOutput({str(output)!r}, rows=2, size=6)"
    partial.part.write_bytes(b"headabHALF A CHUNK")  # written, but not counted
    assert rows_written(output) == 2
    resumed = PartialOutput.resume(output, FINGERPRINT, rows=3)
    assert resumed is not None
    resumed.append(b"c", rows=1)
    resumed.publish(resumed.part)
    assert output.read_bytes() == b"headabc"
    assert rows_written(output) is None


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    PartialOutput.start(output, b"head", FINGERPRINT)
    message = r'started differently: chunk size 2, now 3; prompt null, now "x"\. Run it as before'
    with pytest.raises(CommandError, match=message):
        PartialOutput.resume(output, {"input": "abc", "chunk size": 3, "prompt": "x"}, rows=3)


def test_a_part_file_that_lost_rows_is_an_error(tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    partial = PartialOutput.start(output, b"head", FINGERPRINT)
    partial.part.write_bytes(b"hea")
    with pytest.raises(CommandError, match="is shorter than its manifest says: start again"):
        PartialOutput.resume(output, FINGERPRINT, rows=3)
    partial.part.unlink()
    with pytest.raises(CommandError, match="is shorter than its manifest says: start again"):
        PartialOutput.resume(output, FINGERPRINT, rows=3)


def test_two_runs_at_once_are_noticed(tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    first = PartialOutput.start(output, b"head", FINGERPRINT)
    second = PartialOutput.resume(output, FINGERPRINT, rows=3)
    assert second is not None
    first.append(b"ab", rows=2)
    with pytest.raises(CommandError, match="is another run writing it"):
        second.append(b"ab", rows=2)
    assert rows_written(output) == 2


def note(**changes: object) -> str:
    return json.dumps({"rows": 3, "size": 7, "fingerprint": {}, **changes})


@pytest.mark.parametrize(
    "note",
    [
        *("", "{", "[]", json.dumps({"rows": 3}), "[" * 100_000),
        *(note(rows=rows) for rows in (None, "3", 3.0, -1)),
        *(note(size=size) for size in (None, "7", [])),
        *(note(fingerprint=fingerprint) for fingerprint in (None, [], "x")),
        note(more=1),
    ],
    ids=lambda note: note[:60],
)
def test_a_damaged_note_is_an_error(note: str, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    (tmp_path / "out.npy.part.json").write_text(note, encoding="utf-8")
    with pytest.raises(CommandError, match="is damaged"):
        rows_written(output)


def test_starting_again_throws_away_what_was_left(tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    PartialOutput.start(output, b"old", FINGERPRINT).append(b"rows", rows=2)
    partial = PartialOutput.start(output, b"new", FINGERPRINT)
    assert (partial.rows, partial.part.read_bytes()) == (0, b"new")
    partial.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_starting_again_cut_off_anywhere_mixes_nothing(
    after: bool, tmp_path: Path, killed_at: Callable[..., pytest.MonkeyPatch]
) -> None:
    whole = tmp_path / "whole.npy"
    complete(whole, ENCODINGS["npy"])
    for kills in range(8):
        output = tmp_path / f"out{kills}.npy"
        PartialOutput.start(output, b"head", FINGERPRINT).append(b"old rows", rows=2)
        head = ENCODINGS["npy"].head(rows_from(0), EMPTY)
        patch = killed_at(kills, after=after)
        with pytest.raises(Killed):
            PartialOutput.start(output, head, FINGERPRINT).append(b"", rows=0)
        patch.undo()
        if rows_written(output):
            assert output.with_name(f"{output.name}.part").read_bytes() == b"headold rows"
        else:
            complete(output, ENCODINGS["npy"])
            assert output.read_bytes() == whole.read_bytes()
