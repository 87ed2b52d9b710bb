"""`TextFlags`: how the commands read a file of texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .files.formats import FileFormats, InputFormat

__all__ = ["TextFlags"]


@dataclass(frozen=True, kw_only=True)
class TextFlags:
    """Its flags."""

    input_format: Annotated[
        InputFormat | None, typer.Option(help="Format of IN, if not by its suffix.")
    ] = None
    column: Annotated[str, typer.Option(help="The column with the text.")] = "text"
    encoding: Annotated[str, typer.Option(help="Of a text file, such as cp1252 or utf-16.")] = (
        "utf-8"
    )
    delimiter: Annotated[
        str | None, typer.Option(help="Between the fields of CSV, such as a semicolon.")
    ] = None
    no_header: Annotated[
        bool,
        typer.Option("--no-header", help="CSV's columns have no names: --column 1 is the first."),
    ] = False

    def formats(self, path: Path | None, output: Path, **of_output: Any) -> FileFormats:
        """With those of the output. Raises what `FileFormats.of` raises."""
        return FileFormats.of(
            path,
            output,
            input_format=self.input_format,
            column=self.column,
            text_encoding=self.encoding,
            delimiter=self.delimiter,
            has_header=not self.no_header,
            **of_output,
        )
