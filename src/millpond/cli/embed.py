"""`millpond embed IN -o OUT`: a file of texts to a file of vectors.

Flags are validated and messages printed here.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import EngineConfig
from .embed_flags import OutputFlags, RayFlags, VectorFlags
from .errors import INTERRUPTED, CommandError, is_terminal, say
from .files.formats import FileFormats
from .files.streams import can_be_read_again, is_same_file, is_stream, name_of
from .flags import DEFAULT_MODEL, ModelFlag, open_engine, read_flags, with_flags_of
from .text_flags import TextFlags

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from .files.run import FileRun

__all__ = ["embed"]


@with_flags_of(
    TextFlags,
    VectorFlags,
    OutputFlags,
    RayFlags,
    EngineConfig,
    batch_invariant=True,  # a run that goes on meets other batches
)
def embed(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Texts: a file, or - for standard input.")
    ],
    *,
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write.")],
    model: ModelFlag = DEFAULT_MODEL,
    **flags: Any,
) -> None:
    """Embed a file of texts: lines, JSON lines, CSV or Parquet in; .npy, JSON lines or Parquet out.

    The file may be larger than memory. OUT appears when it is complete. After an interruption the
    same command with --resume continues, and OUT is the same byte for byte. With -o - vectors go
    to standard output as JSON lines. With --ray a folder of Parquet files becomes another one, and
    the same command continues.

    \b
    Example:
      millpond embed reviews.jsonl -o reviews.parquet --column body --task document
      millpond embed 's3://bucket/texts/*.parquet' -o s3://bucket/vectors --ray auto
    """
    text, vectors = read_flags(TextFlags, flags), read_flags(VectorFlags, flags)
    written, cluster = read_flags(OutputFlags, flags), read_flags(RayFlags, flags)
    if cluster.ray is not None:
        _require_for_ray(text, written, vectors)
        from .embed_parts import PartsCommand  # which imports Ray

        PartsCommand(source, output, model, text, written, vectors, flags).run()
        return
    cluster.require_none()
    path, out = None if source == "-" else Path(source), Path(output)
    _require_consistent(path, out, resume=written.resume, restart=written.restart)
    target = out if is_stream(out) else _target(out)
    resume = _has_rows_to_resume(target, resume=written.resume, restart=written.restart)
    formats = text.formats(
        path,
        out,
        output_format=written.output_format,
        output_column=written.output_column,
        vectors_only=written.vectors_only,
    )
    vectors.require_own(formats.output_format)
    run = _file_run(path, target, formats, vectors, chunk_rows=written.chunk_size)
    with open_engine(model, flags, kinds=(vectors.kind.of_model,)) as engine:
        show = _shows_progress(out) if written.progress is None else written.progress
        _run(run, engine, resume=resume, show_progress=show)


def _file_run(
    path: Path | None, output: Path, formats: FileFormats, vectors: VectorFlags, *, chunk_rows: int
) -> FileRun:
    """The run, after a first pass over the input.

    Raises `CommandError` for a row without a text, or one that the output format cannot hold.
    """
    from .files.run import FileRun, scan

    options = vectors.call_options()
    source, encoding = formats.source(path), formats.encoding()
    input_info = None
    if path is not None and can_be_read_again(path):
        input_info = scan(path, source, encoding, chunk_rows=chunk_rows)
    return FileRun(
        source=source,
        encoding=encoding,
        output=output,
        chunk_rows=chunk_rows,
        options=options,
        kind=vectors.output_kind,
        input_info=input_info,
        formats=asdict(formats),
    )


def _require_for_ray(text: TextFlags, written: OutputFlags, vectors: VectorFlags) -> None:
    if find_spec("ray") is None:
        raise CommandError('ray is not installed: pip install "millpond[ray]"')
    for name in (text.input_format, written.output_format):
        if name not in (None, "parquet"):
            raise CommandError(f"--ray reads and writes Parquet files, not {name}")
    if vectors.output_kind != "dense":
        raise CommandError("--ray writes dense vectors; leave out --output-kind")
    vectors.require_own("parquet")


def _require_consistent(path: Path | None, output: Path, *, resume: bool, restart: bool) -> None:
    if resume and restart:
        raise CommandError("--resume continues a run and --restart discards it: choose one")
    if resume and not can_be_read_again(path):
        raise CommandError(f"{name_of(path)} cannot be read twice, so --resume needs a file as IN")
    if resume and is_stream(output):
        raise CommandError("a stream cannot be resumed, so --resume needs a file as OUT")
    if output.is_dir():
        raise CommandError(f"{output} is a folder: name a file")
    if is_same_file(path, output):
        raise CommandError(f"{output} would replace its own input: name another file")


def _target(output: Path) -> Path:
    """The file to write: the output, or the target of that symbolic link.

    Raises `CommandError` where it, or a file beside it, cannot be written.
    """
    from .files.partial_output import manifest_path, part_path

    if not output.parent.is_dir():
        raise CommandError(f"{output.parent} is not a folder: make it first")
    target = Path(os.path.realpath(output)) if output.is_symlink() else output
    for path in (target, part_path(target), manifest_path(target)):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise CommandError(f"{path} exists and is not a regular file: name another output")
    if not target.parent.is_dir():
        raise CommandError(f"{output} points into {target.parent}, which is not a folder")
    if not os.access(target.parent, os.W_OK):
        raise CommandError(f"{target.parent} is not writable: name another folder")
    return target


def _has_rows_to_resume(output: Path, *, resume: bool, restart: bool) -> bool:
    """Whether to resume. Rows of an earlier run are not discarded without --restart."""
    from .files.partial_output import rows_written

    if restart or is_stream(output):
        return False
    rows = rows_written(output)
    if rows and not resume:
        raise CommandError(
            f"an interrupted run left {rows:,} rows of {output}: continue it with --resume, or "
            "discard them with --restart"
        )
    return resume and bool(rows)


def _shows_progress(output: Path) -> bool:
    """On a terminal, unless rows are written to it."""
    return is_terminal() and not (
        is_stream(output) and sys.stdout is not None and sys.stdout.isatty()
    )


def _run(run: FileRun, engine: Engine, *, resume: bool, show_progress: bool) -> None:
    """Embed the rest of the input, and print a summary to stderr."""
    from .files.report import Report

    output = run.open(engine, resume=resume)
    if output is None:
        say(f"{run.output} is already complete")
        return
    report = Report(run, output, longest_tokens=engine.info().max_length)
    try:
        with report.bar(show=show_progress):
            run.embed(engine, output, on_rows=report.saved, progress=report.ran)
    except BaseException as error:
        if not (run.can_be_resumed and output.rows):
            output.discard()  # there is nothing to resume
        if isinstance(error, KeyboardInterrupt):
            say(report.interruption())
            raise typer.Exit(INTERRUPTED) from None
        raise
    say(report.summary())
