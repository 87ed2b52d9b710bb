"""`FileRun`: the rows of an input, through an engine, into an output, a chunk at a time.

It prints nothing and knows no flags; formats are behind `Source` and `Encoding`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidInput, TextFailed
from ..errors import CommandError
from .fingerprint import file_digest, run_fingerprint
from .partial_output import Fingerprint, PartialOutput
from .rows import Encoding, Rows, Source
from .streams import StreamOutput, is_stream

if TYPE_CHECKING:
    from ...engine.engine import CallOptions, Engine
    from ...stats import ProgressHook

__all__ = ["FileRun", "InputFacts", "survey"]

Stamp = tuple[int, ...] | None
"""What changes with a file's content: its size and the times of its last changes; None is gone."""


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """What reading an input through has shown."""

    path: Path
    digest: str
    rows: int
    stamp: Stamp
    """From before it was read."""

    def require_unchanged(self) -> None:
        """Raise `CommandError` where the file is not what it was, so that rows may be mixed."""
        if _stamp(self.path) != self.stamp:
            raise CommandError(
                f"{self.path} changed while it was read, and its rows may be mixed: when it no "
                "longer changes, run this again with --restart"
            )


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def survey(path: Path, source: Source, encoding: Encoding, *, chunk_rows: int) -> InputFacts:
    """Read a file through, so that a bad row is found before any work is done."""
    stamp = _stamp(path)
    rows = sum(len(chunk) for chunk in encoding.checked(source.chunks(chunk_rows)))
    facts = InputFacts(path=path, digest=file_digest(path), rows=rows, stamp=stamp)
    facts.require_unchanged()
    return facts


@dataclass(frozen=True, kw_only=True)
class FileRun:
    """One input that becomes one output."""

    source: Source
    encoding: Encoding
    output: Path
    chunk_rows: int
    """Rows between two notes of how far it is."""
    options: CallOptions
    facts: InputFacts | None
    """Of the input; None for one that can be read only once."""
    layout: Fingerprint
    """How input and output are laid out, as far as the output depends on it."""

    @property
    def can_be_resumed(self) -> bool:
        """Whether rows that are safe are of use to a later run."""
        return self.facts is not None and not is_stream(self.output)

    def open(self, engine: Engine, *, resume: bool) -> PartialOutput | StreamOutput | None:
        """The output, empty or with the rows of an earlier run; None where that run was complete.

        Raises `CommandError` where the earlier run was about something else.
        """
        no_vectors = engine.embed([], **self.options)  # refuses bad options
        if is_stream(self.output):
            return StreamOutput(self.output)
        fingerprint = run_fingerprint(
            engine.info(),
            {
                "input": self.facts and self.facts.digest,
                "chunk_size": self.chunk_rows,
                "pooling": engine.config.pooling and list(engine.config.pooling),
                "batch_invariant": engine.config.batch_invariant,
                **self.options,
                **self.layout,
            },
        )
        if resume and self.facts is not None:
            return PartialOutput.resume(self.output, fingerprint, rows=self.facts.rows)
        head = self.encoding.head(self.source.empty(), no_vectors)
        return PartialOutput.start(self.output, head, fingerprint)

    def embed(
        self,
        engine: Engine,
        output: PartialOutput | StreamOutput,
        *,
        on_rows: Callable[[int], object],
        progress: ProgressHook | None = None,
    ) -> None:
        """Embed the rows that are not there yet and publish the output.

        `on_rows` is told of every chunk that is safe on the disk, or written to a stream, and
        `progress` of every batch. Raises what `Engine.embed_iter` does, with the row's place in
        the input, and `CommandError`.
        """
        before = output.rows
        try:
            self._append(engine, output, on_rows, progress)
        except Exception as error:
            self._require_unchanged()  # what is half rewritten need not even be rows
            if isinstance(error, InvalidInput | TextFailed):
                raise error.at(before + error.index) from error
            raise
        if isinstance(output, StreamOutput):
            output.close()
            return
        no_vectors = engine.embed([], **self.options)
        output.publish(self.encoding.finish(output.part, no_vectors, rows=output.rows))

    def _append(
        self,
        engine: Engine,
        output: PartialOutput | StreamOutput,
        on_rows: Callable[[int], object],
        progress: ProgressHook | None,
    ) -> None:
        ahead: deque[Rows] = deque()  # read, and not embedded yet

        def texts() -> Iterator[str]:
            for rows in self.source.chunks(self.chunk_rows, skip=output.rows):
                ahead.append(rows)
                yield from rows.texts

        size = self.chunk_rows
        embedded = engine.embed_iter(texts(), chunk_size=size, progress=progress, **self.options)
        for vectors in embedded:
            rows = ahead.popleft()
            assert len(rows) == len(vectors)
            self._require_unchanged()  # before these rows count
            output.append(self.encoding.encode(rows, vectors), rows=len(rows))
            on_rows(len(rows))
        self._require_unchanged()

    def _require_unchanged(self) -> None:
        if self.facts is not None:
            self.facts.require_unchanged()
