"""`TextFlags`: how the commands read a file of texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import option
from .files.formats import FileFormats, InputFormat

__all__ = ["TextFlags"]


@dataclass(frozen=True, kw_only=True)
class TextFlags:
    """Its flags."""

    input_format: InputFormat | None = option(None, "Format of IN, if not by its suffix.")
    column: str = option("text", "The column with the text.")
    encoding: str = option("utf-8", "Of a text file, such as cp1252 or utf-16.")
    delimiter: str | None = option(None, "Between the fields of CSV, such as a semicolon.")
    no_header: bool = option(False, "CSV's columns have no names: --column 1 is the first.")

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
