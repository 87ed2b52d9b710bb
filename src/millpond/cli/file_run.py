"""`FileRun`: the rows of an input, through an engine, into a partial output, a chunk at a time.

It prints nothing and knows no flags; formats are behind `Source` and `Encoding`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidInput, TextFailed
from .fingerprint import file_digest, run_fingerprint
from .partial_output import Fingerprint, PartialOutput
from .rows import Encoding, Rows, Source

if TYPE_CHECKING:
    from ..engine import CallOptions, Engine

__all__ = ["FileRun", "InputFacts", "survey"]


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """What reading an input through has shown."""

    digest: str
    rows: int


def survey(path: Path, source: Source, encoding: Encoding, *, chunk_rows: int) -> InputFacts:
    """Read a file through, so that a bad row is found before any work is done."""
    rows = sum(len(chunk) for chunk in encoding.checked(source.chunks(chunk_rows)))
    return InputFacts(digest=file_digest(path), rows=rows)


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
    """Of the input; None for standard input."""
    layout: Fingerprint
    """How input and output are laid out, as far as the output depends on it."""

    def open(self, engine: Engine, *, resume: bool) -> PartialOutput | None:
        """The output, empty or with the rows of an earlier run; None where that run was complete.

        Raises `CommandError` where the earlier run was about something else.
        """
        fingerprint = run_fingerprint(
            engine.info(),
            {
                "input": self.facts and self.facts.digest,
                "chunk_size": self.chunk_rows,
                **self.options,
                **self.layout,
            },
        )
        if resume and self.facts is not None:
            return PartialOutput.resume(self.output, fingerprint, rows=self.facts.rows)
        head = self.encoding.head(self.source.empty(), engine.embed([], **self.options))
        return PartialOutput.start(self.output, head, fingerprint)

    def embed(
        self, engine: Engine, partial: PartialOutput, *, on_rows: Callable[[int], object]
    ) -> None:
        """Embed the rows that are not there yet and publish the output.

        `on_rows` is told of every chunk that is safe on the disk. Raises what `Engine.embed_iter`
        does, with the row's place in the input, and `CommandError`.
        """
        before = partial.rows
        try:
            self._append(engine, partial, on_rows)
        except (InvalidInput, TextFailed) as error:
            raise error.at(before + error.index) from error
        empty = engine.embed([], **self.options)
        finished = self.encoding.finish(partial.part, empty, rows=partial.rows)
        partial.publish(finished)

    def _append(
        self, engine: Engine, partial: PartialOutput, on_rows: Callable[[int], object]
    ) -> None:
        ahead: deque[Rows] = deque()  # read, and not embedded yet

        def texts() -> Iterator[str]:
            for rows in self.source.chunks(self.chunk_rows, skip=partial.rows):
                ahead.append(rows)
                yield from rows.texts

        for vectors in engine.embed_iter(texts(), chunk_size=self.chunk_rows, **self.options):
            rows = ahead.popleft()
            assert len(rows) == len(vectors)
            partial.append(self.encoding.encode(rows, vectors), rows=len(rows))
            on_rows(len(rows))
