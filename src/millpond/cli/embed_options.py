"""The flags of `millpond embed` that no other command has."""

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
    InputFormat | None, typer.Option(help="What IN is, where its suffix does not say.")
]
OutputFormatOption = Annotated[
    OutputFormat | None, typer.Option(help="What OUT is to be, where its suffix does not say.")
]
ColumnOption = Annotated[str, typer.Option(help="The column that is the text.")]
OutputColumnOption = Annotated[
    str, typer.Option(help="The column for the vectors in JSON lines and Parquet.")
]
VectorsOnlyOption = Annotated[
    bool, typer.Option("--vectors-only", help="Leave the columns of IN out of OUT.")
]
NormalizeOption = Annotated[
    bool | None,
    typer.Option(
        "--normalize/--no-normalize",
        help="Scale vectors to unit length, or leave them as they are; without it, as the model "
        "says.",
    ),
]
TruncateOption = Annotated[
    Literal["end", "start", "error"] | None,
    typer.Option(help="Where to cut a text longer than the model reads; error stops there."),
]
OutputTypeOption = Annotated[
    Literal["float32", "float16", "binary", "ubinary", "int8", "uint8"],
    typer.Option("--output-dtype", help="Type of the vectors; int8 and uint8 cannot be streamed."),
]
ChunkSizeOption = Annotated[
    int, typer.Option(min=1, help="Rows to write, and make safe on the disk, at a time.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Throw away what an interrupted run left.")
]
ProgressOption = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Show a progress bar; a terminal gets one."),
]
