"""`millpond embed IN -o OUT`: a file of texts to a file of vectors.

Flags are validated and messages printed here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ..config import EngineConfig
from .embed_parts import PartsCommand, RayFlags
from .errors import CommandError
from .files.formats import FileFormats, InputFormat, OutputFormat
from .files.kinds import OUTPUT_KINDS, OutputKindName
from .files.streams import can_be_read_again, is_same_file, is_stream, name_of
from .flags import DEFAULT_MODEL, open_engine, options_of, with_flags_of

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.params.embed import CallOptions
    from .files.run import FileRun

__all__ = ["embed"]

INTERRUPTED = 130  # 128 + SIGINT, as in shells


@with_flags_of(
    RayFlags, EngineConfig, batch_invariant=True
)  # a run that goes on meets other batches
def embed(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Texts: a file, or - for standard input.")
    ],
    *,
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write.")],
    input_format: Annotated[
        InputFormat | None, typer.Option(help="Format of IN, if not by its suffix.")
    ] = None,
    output_format: Annotated[
        OutputFormat | None, typer.Option(help="Format of OUT, if not by its suffix.")
    ] = None,
    column: Annotated[str, typer.Option(help="The column with the text.")] = "text",
    encoding: Annotated[
        str, typer.Option(help="Of a text file, such as cp1252 or utf-16.")
    ] = "utf-8",
    delimiter: Annotated[
        str | None, typer.Option(help="Between the fields of CSV, such as a semicolon.")
    ] = None,
    no_header: Annotated[
        bool,
        typer.Option("--no-header", help="CSV's columns have no names: --column 1 is the first."),
    ] = False,
    output_column: Annotated[
        str, typer.Option(help="The column for the vectors in JSON lines and Parquet.")
    ] = "embedding",
    vectors_only: Annotated[
        bool, typer.Option("--vectors-only", help="Do not copy the columns of IN to OUT.")
    ] = False,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder, or a name on the Hugging Face hub.")
    ] = DEFAULT_MODEL,
    task: Annotated[
        str | None, typer.Option(help="query or document: adds the model's prompt for it.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to put in front of every text.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Name of a prompt saved with the model.")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Keep the first N dimensions, at unit length.")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Whether to scale vectors to unit length; by default as the model.",
        ),
    ] = None,
    truncate: Annotated[
        Literal["end", "start", "error"] | None,
        typer.Option(help="Where to truncate a text that is too long; error stops instead."),
    ] = None,
    output_dtype: Annotated[
        Literal["float32", "float16", "binary", "ubinary", "int8", "uint8"],
        typer.Option(
            "--output-dtype", help="Type of the vectors; int8 and uint8 cannot be streamed."
        ),
    ] = "float32",
    output_kind: Annotated[
        OutputKindName,
        typer.Option(
            "--output-kind",
            help="dense; sparse: indices and values of a sparse model, such as a SPLADE; or "
            "tokens: a vector for each token, of a multi-vector model such as ColBERT.",
        ),
    ] = "dense",
    max_active_dims: Annotated[
        int | None,
        typer.Option(min=1, help="Of sparse vectors keep the N heaviest dimensions."),
    ] = None,
    min_weight: Annotated[
        float | None, typer.Option(min=0, help="Of sparse vectors keep weights above it.")
    ] = None,
    pool_factor: Annotated[
        float | None,
        typer.Option(min=1, help="Of a document's token vectors keep the means of 1 for N."),
    ] = None,
    chunk_size: Annotated[
        int, typer.Option(min=1, help="Rows to write and sync to disk at a time.")
    ] = 1024,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the rows of an interrupted run.")
    ] = False,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress", help="Show a progress bar; by default on a terminal."
        ),
    ] = None,
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
    of_kinds = {
        "dimensions": dimensions,
        "normalize": normalize,
        "output_dtype": output_dtype,
        "max_active_dims": max_active_dims,
        "min_weight": min_weight or 0.0,
        "pool_factor": pool_factor or 1.0,
    }
    kind = OUTPUT_KINDS[output_kind]
    options: dict[str, Any] = {
        "task": task,
        "prompt": prompt,
        "prompt_name": prompt_name,
        "truncate": truncate,
        **{name: of_kinds[name] for name in kind.options},
    }
    if flags["ray"] is not None:
        _require_parquet(input_format, output_format)
        _require_streamed(options)
        if output_kind != "dense":
            raise CommandError("--ray writes dense vectors; leave out --output-kind")
        PartsCommand(
            source=source,
            output=output,
            model=model,
            column=column,
            output_column=output_column,
            vectors_only=vectors_only,
            chunk_rows=chunk_size,
            restart=restart,
            show_progress=_is_terminal() if progress is None else progress,
            call=cast("CallOptions", options),
            flags=flags,
        ).run()
        return
    RayFlags(**options_of(RayFlags, flags)).require_none()
    path, out = None if source == "-" else Path(source), Path(output)
    _require_consistent(path, out, resume=resume, restart=restart)
    target = out if is_stream(out) else _target(out)
    resume = _has_rows_to_resume(target, resume=resume, restart=restart)
    formats = FileFormats.of(
        path,
        out,
        input_format=input_format,
        output_format=output_format,
        column=column,
        output_column=output_column,
        vectors_only=vectors_only,
        text_encoding=encoding,
        delimiter=delimiter,
        has_header=not no_header,
    )
    _require_own(of_kinds, output_kind, formats)
    run = _file_run(path, target, formats, options, kind=output_kind, chunk_rows=chunk_size)
    with open_engine(model, flags, kinds=(kind.of_model,)) as engine:
        show = _shows_progress(out) if progress is None else progress
        _run(run, engine, resume=resume, show_progress=show)


def _require_own(of_kinds: Mapping[str, Any], name: str, formats: FileFormats) -> None:
    """Raise `CommandError` for options of another kind of output, and a format that has none."""
    kind = OUTPUT_KINDS[name]
    for option, value in of_kinds.items():
        if option not in kind.options and value not in (None, "float32", 0.0, 1.0):
            raise CommandError(f"--{option.replace('_', '-')} is not for --output-kind {name}")
    if not kind.is_matrix and formats.output_format == "npy":
        raise CommandError(
            f"--output-kind {name} makes no matrix, which .npy holds: write .parquet or .jsonl"
        )


def _file_run(
    path: Path | None,
    output: Path,
    formats: FileFormats,
    options: Mapping[str, Any],
    *,
    kind: OutputKindName,
    chunk_rows: int,
) -> FileRun:
    """The run, after a first pass over the input.

    Raises `CommandError` for a row without a text, or one that the output format cannot hold.
    """
    from .files.run import FileRun, scan

    _require_streamed(options)
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
        kind=kind,
        input_info=input_info,
        formats=asdict(formats),
    )


def _require_streamed(options: Mapping[str, Any]) -> None:
    dtype = options.get("output_dtype")
    if dtype in ("int8", "uint8"):
        raise CommandError(
            f"{dtype} takes each dimension's range from all vectors at once: write float32 and "
            "call millpond.quantize on it"
        )


def _require_parquet(*formats: str | None) -> None:
    for name in formats:
        if name not in (None, "parquet"):
            raise CommandError(f"--ray reads and writes Parquet files, not {name}")


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
    return _is_terminal() and not (
        is_stream(output) and sys.stdout is not None and sys.stdout.isatty()
    )


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _run(run: FileRun, engine: Engine, *, resume: bool, show_progress: bool) -> None:
    """Embed the rest of the input, and print a summary to stderr."""
    from .report import Report

    output = run.open(engine, resume=resume)
    if output is None:
        _print(f"{run.output} is already complete")
        return
    report = Report(run, output, longest_tokens=engine.info().max_length)
    try:
        with report.bar(show=show_progress):
            run.embed(engine, output, on_rows=report.saved, progress=report.ran)
    except BaseException as error:
        if not (run.can_be_resumed and output.rows):
            output.discard()  # there is nothing to resume
        if isinstance(error, KeyboardInterrupt):
            _print(report.interruption())
            raise typer.Exit(INTERRUPTED) from None
        raise
    _print(report.summary())


def _print(message: str) -> None:
    if sys.stderr is not None:
        print(f"millpond: {message}", file=sys.stderr)
