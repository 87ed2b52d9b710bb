"""`millpond embed IN -o OUT`: a file of texts becomes a file of vectors.

Here is what its flags may not be together, and what the user is told.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .embed_options import (
    ChunkSizeOption,
    ColumnOption,
    InputArgument,
    InputFormatOption,
    NormalizeOption,
    OutputColumnOption,
    OutputFormatOption,
    OutputOption,
    OutputTypeOption,
    ProgressOption,
    RestartOption,
    ResumeOption,
    TruncateOption,
    VectorsOnlyOption,
)
from .engine_flags import with_engine_flags
from .errors import CommandError
from .files.formats import FileFormats
from .files.streams import can_be_read_again, is_same_file, is_stream, name_of
from .options import (
    DEFAULT_MODEL,
    DimensionsOption,
    ModelOption,
    PromptNameOption,
    PromptOption,
    TaskOption,
    open_engine,
)

if TYPE_CHECKING:
    from ..engine.engine import CallOptions, Engine
    from .files.run import FileRun

__all__ = ["embed"]

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


@with_engine_flags(batch_invariant=True)  # a run that goes on meets other batches
def embed(
    source: InputArgument,
    *,
    output: OutputOption,
    input_format: InputFormatOption = None,
    output_format: OutputFormatOption = None,
    column: ColumnOption = "text",
    output_column: OutputColumnOption = "embedding",
    vectors_only: VectorsOnlyOption = False,
    model: ModelOption = DEFAULT_MODEL,
    task: TaskOption = None,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    dimensions: DimensionsOption = None,
    normalize: NormalizeOption = None,
    truncate: TruncateOption = None,
    output_dtype: OutputTypeOption = "float32",
    chunk_size: ChunkSizeOption = 1024,
    resume: ResumeOption = False,
    restart: RestartOption = False,
    progress: ProgressOption = None,
    **engine_options: Any,
) -> None:
    """Embed a file of texts: lines, JSON lines, CSV or Parquet in; .npy, JSON lines or Parquet out.

    The file may be larger than memory. OUT appears when it is complete. After an interruption the
    same command with --resume goes on, and OUT becomes the same to the byte. With -o - vectors go
    to standard output as JSON lines.

    \b
    Example:
      millpond embed reviews.jsonl -o reviews.parquet --column body --task document
    """
    path = None if str(source) == "-" else source
    _refuse_contradictions(path, output, resume=resume, restart=restart)
    target = output if is_stream(output) else _target(output)
    resume = _has_rows_to_resume(target, resume=resume, restart=restart)
    layout = FileFormats.of(
        path,
        output,
        input_format=input_format,
        output_format=output_format,
        column=column,
        output_column=output_column,
        vectors_only=vectors_only,
    )
    options: CallOptions = {
        "task": task,
        "prompt": prompt,
        "prompt_name": prompt_name,
        "dimensions": dimensions,
        "normalize": normalize,
        "truncate": truncate,
        "output_dtype": output_dtype,
    }
    run = _file_run(path, target, layout, options, chunk_rows=chunk_size)
    with open_engine(model, engine_options) as engine:
        show = _shows_progress(output) if progress is None else progress
        _carry_out(run, engine, resume=resume, show_progress=show)


def _file_run(
    path: Path | None, output: Path, layout: FileFormats, options: CallOptions, *, chunk_rows: int
) -> FileRun:
    """The run, its input read through once.

    Raises `CommandError` for a row that has no text, or that the output cannot keep.
    """
    from .files.run import FileRun, survey

    dtype = options["output_dtype"]
    if dtype in ("int8", "uint8"):
        raise CommandError(
            f"{dtype} takes each dimension's range from all vectors at once: write float32 and "
            "call millpond.quantize on it"
        )
    source, encoding = layout.source(path), layout.encoding()
    facts = None
    if path is not None and can_be_read_again(path):
        facts = survey(path, source, encoding, chunk_rows=chunk_rows)
    return FileRun(
        source=source,
        encoding=encoding,
        output=output,
        chunk_rows=chunk_rows,
        options=options,
        facts=facts,
        layout=asdict(layout),
    )


def _refuse_contradictions(path: Path | None, output: Path, *, resume: bool, restart: bool) -> None:
    if resume and restart:
        raise CommandError("--resume goes on with a run and --restart throws it away: choose one")
    if resume and not can_be_read_again(path):
        raise CommandError(f"{name_of(path)} cannot be read again, so --resume needs a file as IN")
    if resume and is_stream(output):
        raise CommandError("rows that are written to a stream are gone, so --resume needs a file")
    if output.is_dir():
        raise CommandError(f"{output} is a folder: name a file")
    if is_same_file(path, output):
        raise CommandError(f"{output} would replace its own input: name another file")


def _target(output: Path) -> Path:
    """The file to write: where the output is a symbolic link, what that points to.

    Raises `CommandError` for what would be replaced, or written into, and is no file.
    """
    from .files.partial_output import note_path, part_path

    if not output.parent.is_dir():
        raise CommandError(f"{output.parent} is not a folder: make it first")
    target = Path(os.path.realpath(output)) if output.is_symlink() else output
    for path in (target, part_path(target), note_path(target)):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise CommandError(f"{path} is there and is not an ordinary file: name another output")
    if not target.parent.is_dir():
        raise CommandError(f"{output} points into {target.parent}, which is not a folder")
    if not os.access(target.parent, os.W_OK):
        raise CommandError(f"{target.parent} is a folder that you may not write in: name another")
    return target


def _has_rows_to_resume(output: Path, *, resume: bool, restart: bool) -> bool:
    """Whether to go on from what an earlier run left. Left rows are not thrown away unasked."""
    from .files.partial_output import rows_left

    if restart or is_stream(output):
        return False
    rows = rows_left(output)
    if rows and not resume:
        raise CommandError(
            f"an interrupted run left {rows:,} rows of {output}: go on with --resume, or throw "
            "them away with --restart"
        )
    return resume and bool(rows)


def _shows_progress(output: Path) -> bool:
    """A terminal gets a bar, unless rows are shown on it."""
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    return not (is_stream(output) and sys.stdout is not None and sys.stdout.isatty())


def _carry_out(run: FileRun, engine: Engine, *, resume: bool, show_progress: bool) -> None:
    """Embed what is left of the input, and say on stderr how it went."""
    from .report import Report

    output = run.open(engine, resume=resume)
    if output is None:
        _say(f"{run.output} was complete already")
        return
    report = Report(run, output, longest_tokens=engine.info().max_length)
    try:
        with report.bar(show=show_progress):
            run.embed(engine, output, on_rows=report.saved, progress=report.ran)
    except BaseException as error:
        if not (run.can_be_resumed and output.rows):
            output.discard()  # there is nothing to go on from
        if isinstance(error, KeyboardInterrupt):
            _say(report.interruption())
            raise typer.Exit(INTERRUPTED) from None
        raise
    _say(report.summary())


def _say(message: str) -> None:
    if sys.stderr is not None:
        print(f"millpond: {message}", file=sys.stderr)
