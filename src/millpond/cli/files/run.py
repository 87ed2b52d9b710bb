"""`FileRun`: embeds the rows of an input into an output, a chunk at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InvalidInput, TextFailed
from ..errors import CommandError
from .fingerprint import file_digest, run_fingerprint
from .kinds import OUTPUT_KINDS, OutputKindName
from .partial_output import Fingerprint, PartialOutput
from .rows import Encoding, Rows, Source
from .streams import StreamOutput, is_stream

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ...stats import ProgressHook

__all__ = ["FileRun", "InputInfo", "scan"]

Stamp = tuple[int, ...] | None
"""A file's size and modification times; None if it does not exist."""


@dataclass(frozen=True, kw_only=True)
class InputInfo:
    """What a first pass over an input has found."""

    path: Path
    digest: str
    rows: int
    stamp: Stamp
    """Taken before the first pass."""

    def require_unchanged(self) -> None:
        """Raise `CommandError` where the file has changed."""
        if _stamp(self.path) != self.stamp:
            raise CommandError(
                f"{self.path} changed while it was read, so its rows may be mixed: when it no "
                "longer changes, run this again with --restart"
            )


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def scan(path: Path, source: Source, encoding: Encoding, *, chunk_rows: int) -> InputInfo:
    """Read a file once, so that an invalid row is found before any is embedded."""
    stamp = _stamp(path)
    rows = sum(len(chunk) for chunk in encoding.checked(source.chunks(chunk_rows)))
    input_info = InputInfo(path=path, digest=file_digest(path), rows=rows, stamp=stamp)
    input_info.require_unchanged()
    return input_info


@dataclass(frozen=True, kw_only=True)
class FileRun:
    """One input and its output."""

    source: Source
    encoding: Encoding
    output: Path
    chunk_rows: int
    """Rows per chunk."""
    options: Mapping[str, Any]
    """Of the call, as the kind of output has them."""
    kind: OutputKindName
    input_info: InputInfo | None
    """None for an input that can be read only once."""
    formats: Fingerprint
    """The formats and columns, as part of the fingerprint."""

    @property
    def can_be_resumed(self) -> bool:
        """Whether a later run can use the rows on disk."""
        return self.input_info is not None and not is_stream(self.output)

    def open(self, engine: Engine, *, resume: bool) -> PartialOutput | StreamOutput | None:
        """The output, empty or with the rows of an earlier run; None where that is complete.

        Raises `CommandError` where the earlier run was a different one.
        """
        no_vectors = self._no_vectors(engine)  # validates the options
        if is_stream(self.output):
            return StreamOutput(self.output)
        fingerprint = run_fingerprint(
            engine.info(),
            {
                "input": self.input_info and self.input_info.digest,
                "chunk_size": self.chunk_rows,
                "pooling": engine.config.pooling and list(engine.config.pooling),
                "batch_invariant": engine.config.batch_invariant,
                "output_kind": self.kind,
                **self.options,
                **self.formats,
            },
        )
        if resume and self.input_info is not None:
            return PartialOutput.resume(self.output, fingerprint, rows=self.input_info.rows)
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
        """Embed the remaining rows and publish the output.

        `on_rows` is called for every chunk on disk, or written to a stream, and `progress` for
        every batch. Raises as `Engine.embed_iter`, with the index of the row in the input, and
        `CommandError`.
        """
        before = output.rows
        try:
            self._append(engine, output, on_rows, progress)
        except Exception as error:
            self._require_unchanged()  # which may be the cause
            if isinstance(error, InvalidInput | TextFailed):
                raise error.at(before + error.index) from error
            raise
        if isinstance(output, StreamOutput):
            output.close()
            return
        no_vectors = self._no_vectors(engine)
        output.publish(self.encoding.finish(output.part, no_vectors, rows=output.rows))

    def _append(
        self,
        engine: Engine,
        output: PartialOutput | StreamOutput,
        on_rows: Callable[[int], object],
        progress: ProgressHook | None,
    ) -> None:
        ahead: deque[Rows] = deque()  # read and not yet embedded

        def texts() -> Iterator[str]:
            for rows in self.source.chunks(self.chunk_rows, skip=output.rows):
                ahead.append(rows)
                yield from rows.texts

        size = self.chunk_rows
        options = {"chunk_size": size, "progress": progress, **self.options}
        for vectors in OUTPUT_KINDS[self.kind].iterate(engine, texts(), **options):
            rows = ahead.popleft()
            assert len(rows) == len(vectors)
            self._require_unchanged()  # before these rows are counted
            output.append(self.encoding.encode(rows, vectors), rows=len(rows))
            on_rows(len(rows))
        self._require_unchanged()

    def _no_vectors(self, engine: Engine) -> Any:
        return OUTPUT_KINDS[self.kind].embed(engine, [], **self.options)

    def _require_unchanged(self) -> None:
        if self.input_info is not None:
            self.input_info.require_unchanged()
