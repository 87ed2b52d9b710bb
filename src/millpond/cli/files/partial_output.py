"""`PartialOutput`: an unfinished output file and its manifest.

Beside `vectors.npy` are `vectors.npy.part`, to which chunks are appended, and the manifest
`vectors.npy.part.json` with the number of complete rows and bytes. A chunk is synced to disk before
the manifest counts it, so the manifest is correct whatever ends the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ..errors import CommandError
from .streams import named_error, sync

__all__ = ["Fingerprint", "PartialOutput", "changes", "rows_written"]

Fingerprint = Mapping[str, object]
"""What the rows depend on, in JSON types."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How much of a part file is complete."""

    rows: int
    size: int
    """Bytes."""
    fingerprint: Fingerprint


class PartialOutput:
    """The part file of `output` and its manifest. Made by `start` or `resume`."""

    def __init__(self, output: Path, manifest: Manifest) -> None:
        self._output = output
        self._part = part_path(output)
        self._manifest = manifest  # only _save changes it

    @classmethod
    def start(cls, output: Path, head: bytes, fingerprint: Fingerprint) -> Self:
        """An empty one, without what an earlier run left."""
        manifest_path(output).unlink(missing_ok=True)  # before the part file it describes
        part_path(output).write_bytes(b"")
        partial = cls(output, Manifest(rows=0, size=0, fingerprint=fingerprint))
        partial.append(head, rows=0)
        return partial

    @classmethod
    def resume(cls, output: Path, fingerprint: Fingerprint, *, rows: int) -> Self | None:
        """The rows of an earlier run; None where it had published all `rows`.

        Raises `CommandError` where that run was a different one, or its files are damaged.
        """
        manifest = _read_manifest(output)
        _require_same(output, manifest.fingerprint, fingerprint)
        part = part_path(output)
        if manifest.rows == rows and output.exists() and not part.exists():
            manifest_path(output).unlink()  # that run's last step
            return None
        if not part.exists() or part.stat().st_size < manifest.size:
            raise CommandError(
                f"{part} is shorter than its manifest says: start again with --restart"
            )
        os.truncate(part, manifest.size)
        return cls(output, manifest)

    @property
    def rows(self) -> int:
        """Rows that are on disk."""
        return self._manifest.rows

    @property
    def part(self) -> Path:
        """The file with the rows."""
        return self._part

    def append(self, chunk: bytes, *, rows: int) -> None:
        """Append a chunk and sync it to disk."""
        with named_error(self._part), self._part.open("ab") as file:
            if file.tell() != self._manifest.size:
                raise CommandError(f"{self._part} has grown: is another run writing it?")
            file.write(chunk)
            sync(file)
        self._save(rows=self._manifest.rows + rows, size=self._manifest.size + len(chunk))

    def _save(self, *, rows: int, size: int) -> None:
        manifest = Manifest(rows=rows, size=size, fingerprint=self._manifest.fingerprint)
        path, new = manifest_path(self._output), _new_manifest_path(self._output)
        with named_error(new), new.open("w", encoding="utf-8") as file:
            json.dump(asdict(manifest), file, indent=2)
            sync(file)
        os.replace(new, path)
        _sync_folder(path.parent)
        self._manifest = manifest

    def publish(self, finished: Path) -> None:
        """Replace the output by the finished file atomically, and remove the other files."""
        os.replace(finished, self._output)
        _sync_folder(self._output.parent)
        self._part.unlink(missing_ok=True)
        manifest_path(self._output).unlink()

    def discard(self) -> None:
        """Remove the part file and the manifest."""
        for path in (manifest_path(self._output), _new_manifest_path(self._output), self._part):
            path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"PartialOutput({str(self._output)!r}, rows={self.rows}, size={self._manifest.size})"


def part_path(output: Path) -> Path:
    """The rows of an unfinished output."""
    return output.with_name(f"{output.name}.part")


def manifest_path(output: Path) -> Path:
    """Its manifest."""
    return output.with_name(f"{output.name}.part.json")


def _new_manifest_path(output: Path) -> Path:
    """A manifest before it replaces the previous one."""
    return output.with_name(f"{output.name}.part.json.new")


def rows_written(output: Path) -> int | None:
    """Rows of an unfinished earlier run, or None."""
    return _read_manifest(output).rows if manifest_path(output).exists() else None


def _read_manifest(output: Path) -> Manifest:
    path = manifest_path(output)
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        for count in (manifest.rows, manifest.size):
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"{count!r} is not a count")
        if not isinstance(manifest.fingerprint, dict):
            raise ValueError("it has no fingerprint")
        return manifest
    except (ValueError, TypeError, RecursionError) as error:
        raise CommandError(f"{path} is damaged ({error}): start again with --restart") from None


def _require_same(output: Path, before: Fingerprint, now: Fingerprint) -> None:
    if changed := changes(before, now):
        raise CommandError(
            f"{output} cannot be resumed, it was started differently: {changed}. Run it as before, "
            "or start again with --restart"
        )


def changes(before: Fingerprint, now: Fingerprint) -> str:
    """What differs, as a message says it; nothing where they are equal."""
    return "; ".join(
        f"{name.replace('_', ' ')} {json.dumps(before.get(name))}, now {json.dumps(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )


def _sync_folder(folder: Path) -> None:
    """Sync a rename in it; Windows has no need to."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
