"""`millpond embed IN -o DIR --ray ADDRESS`: a folder of Parquet files to another, on a Ray cluster.

Here the files are listed, those that are finished left out, and messages printed; `..ray` does the
work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import typer

from ..config import EngineConfig
from ..ray.actors import ActorPool
from ..ray.batches import Columns
from ..ray.filesystems import File, Folder, matching
from ..ray.parts import PartDone, PartsSpec, cluster, embed_parts, remove_unfinished
from .embed_flags import OutputFlags, RayFlags, VectorFlags
from .errors import INTERRUPTED, CommandError, is_terminal, say
from .files.partial_output import changes
from .flags import engine_options, read_flags
from .text_flags import TextFlags

__all__ = ["PartsCommand"]

MANIFEST = "_millpond.json"
MOST_SHOWN = 10  # errors of files


@dataclass(frozen=True)
class PartsCommand:
    """The command with its flags."""

    source: str
    output: str
    model: str
    text: TextFlags
    written: OutputFlags
    vectors: VectorFlags
    flags: Mapping[str, Any]
    """`RayFlags` and `EngineConfig`."""

    def run(self) -> None:
        """Embed what is not finished. Raises `CommandError`, and exits after an interrupt."""
        options, of_engine = read_flags(RayFlags, self.flags), engine_options(self.flags)
        config = EngineConfig.of(self.model, of_engine)
        pool = self._pool(options)
        source, files = matching(self.source)
        target = Folder.of(self.output)
        if source.contains(target) or target.contains(source):
            raise CommandError(f"{self.output} and {self.source} lie in each other: name another")
        todo = self._unfinished(files, target, self._fingerprint(options, config))
        before = len(files) - len(todo)
        if not todo:
            say(f"{self.output} is already complete")
            return
        spec = PartsSpec(
            source=source,
            target=target,
            columns=Columns(
                read=(self.text.column,),
                output=self.written.output_column,
                error=f"{self.written.output_column}_error",
                on_error=options.on_error,
            ),
            vectors_only=self.written.vectors_only,
            chunk_rows=self.written.chunk_size,
        )
        assert options.ray is not None
        report = _Report(self.output, len(files), before)
        show = is_terminal() if self.written.progress is None else self.written.progress
        with cluster(options.ray):
            lack = pool.lack()
            if lack and options.ray == "local":
                raise CommandError(f"{lack}, and a local cluster gets no other")
            if lack:
                say(f"{lack} now; Ray waits for one")
            call = self.vectors.call_options()
            parts = embed_parts(
                todo, spec, model=self.model, options=of_engine, call=call, pool=pool
            )
            report.follow(parts, show=show)
        remove_unfinished(target)
        report.finish()

    def _pool(self, options: RayFlags) -> ActorPool:
        least, colon, most = options.actors.partition(":")
        try:
            actors: Any = (int(least), int(most) if most else None) if colon else int(least)
        except ValueError:
            raise CommandError(
                f"--actors {options.actors}: give a number, or the least and the most as 1:8"
            ) from None
        return ActorPool(actors=actors, gpus=options.gpus_per_actor, cpus=options.cpus_per_actor)

    def _fingerprint(self, options: RayFlags, config: EngineConfig) -> dict[str, Any]:
        """What the vectors depend on, as far as it is known here."""
        call = self.vectors.call_options()
        return {
            "model": self.model,
            **config.options(),
            **{name: value for name, value in call.items() if value is not None},
            "column": self.text.column,
            "output_column": self.written.output_column,
            "vectors_only": self.written.vectors_only,
            "on_error": options.on_error,
            "millpond": version("millpond"),
        }

    def _unfinished(
        self, files: Sequence[File], target: Folder, fingerprint: Mapping[str, Any]
    ) -> list[str]:
        """The names of the files without an output that is as new, the largest first.

        Raises `CommandError` where the output is of a run with other options.
        """
        done = {each.name: each for each in target.files()}
        restart = self.written.restart
        finished = set() if restart else {each.name for each in files if each.name in done}
        has_files = any(not name.startswith((".", "_")) for name in done)
        is_continued = not restart and has_files and (finished or MANIFEST in done)
        before = _manifest(target, done) if is_continued else fingerprint
        if changed := changes(before, fingerprint):
            raise CommandError(
                f"{self.output} was started differently: {changed}. Run it as before, name another "
                "folder, or start again with --restart"
            )
        finished = {
            each.name
            for each in files
            if each.name in finished and done[each.name].modified_ns >= each.modified_ns
        }
        target.system.create_dir(target.path(), recursive=True)
        with target.system.open_output_stream(target.path(MANIFEST)) as file:
            file.write(json.dumps(fingerprint, indent=2, sort_keys=True).encode())
        todo = [each for each in files if each.name not in finished]
        return [each.name for each in sorted(todo, key=lambda each: (-each.size, each.name))]


class _Report:
    """The progress bar, the errors of files and the summary."""

    def __init__(self, output: str, files: int, before: int) -> None:
        self._output = output
        self._files = files
        self._before = before
        self._finished = before
        self._rows = self._failed = self._truncated = 0
        self._errors: list[str] = []

    def follow(self, parts: Iterable[PartDone], *, show: bool) -> None:
        """Take what becomes of the files. Raises `CommandError` for what is wrong with them all."""
        from tqdm import tqdm

        total, before = self._files, self._before
        try:
            with tqdm(total=total, initial=before, unit="file", disable=not show) as bar:
                for part in parts:
                    self._take(part)
                    bar.update()
                    bar.set_postfix_str(f"{self._rows:,} rows")
        except KeyboardInterrupt:
            say(
                f"interrupted; {self._finished:,} of {self._files:,} files are finished; the same "
                "command continues"
            )
            raise typer.Exit(INTERRUPTED) from None

    def finish(self) -> None:
        """Print a summary. Raises `CommandError` where a file was not written."""
        for error in self._errors[:MOST_SHOWN]:
            say(f"error: {error}")
        if self._errors:
            more = len(self._errors) - MOST_SHOWN
            raise CommandError(
                f"{len(self._errors):,} of {self._files:,} files were not written"
                + (f", {more:,} of them not shown" if more > 0 else "")
                + "; the same command tries them again"
            )
        say(self._summary())

    def _take(self, part: PartDone) -> None:
        if part.ends_all:
            raise CommandError(str(part.error))
        if part.error is not None:
            self._errors.append(f"{part.name}: {part.error}")
            return
        self._finished += 1
        self._rows += part.rows
        self._failed += part.failed
        self._truncated += part.truncated

    def _summary(self) -> str:
        now = self._finished - self._before
        summary = f"{self._rows:,} rows of {now:,} files → {self._output}"
        if self._before:
            summary += f", with {self._before:,} files from an earlier run"
        if self._failed:
            summary += f"; {self._failed:,} rows have no vector"
        if self._truncated:
            summary += f"; {self._truncated:,} texts were longer than the model reads and truncated"
        return summary


def _manifest(target: Folder, done: Mapping[str, Any]) -> Mapping[str, Any]:
    if MANIFEST not in done:
        raise CommandError(
            f"{target.uri} has files of these names that this command did not write: name another "
            "folder, or replace them with --restart"
        )
    with target.system.open_input_stream(target.path(MANIFEST)) as file:
        content = file.read()
    try:
        manifest = json.loads(content)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise CommandError(f"{target.uri}/{MANIFEST} is damaged: start again with --restart")
    return manifest
