"""The flags of `millpond embed` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .files.formats import InputFormat, OutputFormat

__all__ = [
    "ChunkSizeOption",
    "ColumnOption",
    "InputArgument",
    "InputFormatOption",
    "NormalizeOption",
    "OutputColumnOption",
    "OutputFormatOption",
    "OutputOption",
    "OutputTypeOption",
    "ProgressOption",
    "RestartOption",
    "ResumeOption",
    "TruncateOption",
    "VectorsOnlyOption",
]

InputArgument = Annotated[
    Path, typer.Argument(metavar="IN", help="Texts: a file, or - for standard input.")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
InputFormatOption = Annotated[
    InputFormat | None, typer.Option(help="Format of IN, if not by its suffix.")
]
OutputFormatOption = Annotated[
    OutputFormat | None, typer.Option(help="Format of OUT, if not by its suffix.")
]
ColumnOption = Annotated[str, typer.Option(help="The column with the text.")]
OutputColumnOption = Annotated[
    str, typer.Option(help="The column for the vectors in JSON lines and Parquet.")
]
VectorsOnlyOption = Annotated[
    bool, typer.Option("--vectors-only", help="Do not copy the columns of IN to OUT.")
]
NormalizeOption = Annotated[
    bool | None,
    typer.Option(
        "--normalize/--no-normalize",
        help="Whether to scale vectors to unit length; by default as the model.",
    ),
]
TruncateOption = Annotated[
    Literal["end", "start", "error"] | None,
    typer.Option(help="Where to truncate a text that is too long; error stops instead."),
]
OutputTypeOption = Annotated[
    Literal["float32", "float16", "binary", "ubinary", "int8", "uint8"],
    typer.Option("--output-dtype", help="Type of the vectors; int8 and uint8 cannot be streamed."),
]
ChunkSizeOption = Annotated[
    int, typer.Option(min=1, help="Rows to write and sync to disk at a time.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Discard the rows of an interrupted run.")
]
ProgressOption = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Show a progress bar; by default on a terminal."),
]
