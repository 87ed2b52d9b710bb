"""`PartialOutput`: an output file that is not finished, and a note of how much of it counts.

Beside `vectors.npy` stand `vectors.npy.part`, to which chunks are appended, and
`vectors.npy.part.json`, which says how many rows and bytes of it are whole. A chunk is on the
disk before the note counts it, so whatever ends the process, the note is true. It knows no format
and no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from ..errors import CommandError
from .streams import named_error

__all__ = ["Fingerprint", "PartialOutput", "rows_left"]

Fingerprint = Mapping[str, object]
"""What the rows were made of and with, in plain JSON types."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How much of a part file counts."""

    rows: int
    size: int
    """Bytes."""
    fingerprint: Fingerprint


class PartialOutput:
    """The part file of `output` and its note. Made by `start` or `resume`."""

    def __init__(self, output: Path, note: Manifest) -> None:
        self._output = output
        self._part = part_path(output)
        self._note = note  # only _save changes it

    @classmethod
    def start(cls, output: Path, head: bytes, fingerprint: Fingerprint) -> Self:
        """From nothing, whatever an earlier run may have left."""
        note_path(output).unlink(missing_ok=True)  # before the part file it speaks of
        part_path(output).write_bytes(b"")
        partial = cls(output, Manifest(rows=0, size=0, fingerprint=fingerprint))
        partial.append(head, rows=0)
        return partial

    @classmethod
    def resume(cls, output: Path, fingerprint: Fingerprint, *, rows: int) -> Self | None:
        """Where an earlier run over `rows` rows was cut off; None where it had published them all.

        Raises `CommandError` where that run was about something else, or its files are damaged.
        """
        note = _read_note(output)
        _require_same(output, note.fingerprint, fingerprint)
        part = part_path(output)
        if note.rows == rows and output.exists() and not part.exists():
            note_path(output).unlink()  # the last thing that run would have done
            return None
        if not part.exists() or part.stat().st_size < note.size:
            raise CommandError(f"{part} lost rows that were in it: start again with --restart")
        os.truncate(part, note.size)
        return cls(output, note)

    @property
    def rows(self) -> int:
        """Rows that are safe on the disk."""
        return self._note.rows

    @property
    def part(self) -> Path:
        """The file the rows are in."""
        return self._part

    def append(self, chunk: bytes, *, rows: int) -> None:
        """Add a chunk. When this returns, it outlives the process and the machine's power."""
        with named_error(self._part), self._part.open("ab") as file:
            if file.tell() != self._note.size:
                raise CommandError(f"{self._part} has grown by itself: does another run write it?")
            file.write(chunk)
            _sync(file)
        self._save(rows=self._note.rows + rows, size=self._note.size + len(chunk))

    def _save(self, *, rows: int, size: int) -> None:
        note = Manifest(rows=rows, size=size, fingerprint=self._note.fingerprint)
        path, new = note_path(self._output), _new_note_path(self._output)
        with named_error(new), new.open("w", encoding="utf-8") as file:
            json.dump(asdict(note), file, indent=2)
            _sync(file)
        os.replace(new, path)
        _sync_folder(path.parent)
        self._note = note

    def publish(self, finished: Path) -> None:
        """Put the finished file in the output's place, all at once, and clear the rest away."""
        os.replace(finished, self._output)
        _sync_folder(self._output.parent)
        self._part.unlink(missing_ok=True)
        note_path(self._output).unlink()

    def discard(self) -> None:
        """Clear everything away."""
        for path in (note_path(self._output), _new_note_path(self._output), self._part):
            path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"PartialOutput({str(self._output)!r}, rows={self.rows}, size={self._note.size})"


def part_path(output: Path) -> Path:
    """Where the rows are until the output is finished."""
    return output.with_name(f"{output.name}.part")


def note_path(output: Path) -> Path:
    """Where it is noted how many of them count."""
    return output.with_name(f"{output.name}.part.json")


def _new_note_path(output: Path) -> Path:
    """Where a note is until it takes the place of the one before."""
    return output.with_name(f"{output.name}.part.json.new")


def rows_left(output: Path) -> int | None:
    """Rows that an earlier run left, or None where it left nothing to go on from."""
    return _read_note(output).rows if note_path(output).exists() else None


def _read_note(output: Path) -> Manifest:
    path = note_path(output)
    try:
        note = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        for count in (note.rows, note.size):
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"{count!r} is not a count")
        if not isinstance(note.fingerprint, dict):
            raise ValueError("it does not say what the rows are of")
        return note
    except (ValueError, TypeError, RecursionError) as error:
        raise CommandError(f"{path} is damaged ({error}): start again with --restart") from None


def _require_same(output: Path, before: Fingerprint, now: Fingerprint) -> None:
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed:
        raise CommandError(
            f"{output} cannot be resumed, it was begun differently: "
            + "; ".join(_change(name, before.get(name), now.get(name)) for name in changed)
            + ". Call it as before, or start again with --restart"
        )


def _change(name: str, before: object, now: object) -> str:
    return f"{name.replace('_', ' ')} {json.dumps(before)}, now {json.dumps(now)}"


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in it last; Windows has no way to, and no need."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
