"""`FileFormats`: the formats of `millpond embed`, by name or by file suffix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import CommandError
from .streams import can_be_read_again, is_stream, name_of, require_encoding

if TYPE_CHECKING:
    from .rows import Encoding, Source

__all__ = ["FileFormats", "InputFormat", "OutputFormat"]

Name = TypeVar("Name", bound=str)
InputFormat = Literal["text", "jsonl", "csv", "tsv", "parquet"]
OutputFormat = Literal["npy", "jsonl", "parquet"]
_INPUT_SUFFIXES: dict[str, InputFormat] = {
    "": "text",
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_OUTPUT_SUFFIXES: dict[str, OutputFormat] = {
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True, kw_only=True)
class FileFormats:
    """The formats of an input and its output."""

    input_format: InputFormat
    output_format: OutputFormat
    column: str
    """The column with the text."""
    output_column: str
    """The vectors' column in an output with columns."""
    vectors_only: bool
    """Whether the input's columns are not copied."""
    text_encoding: str = "utf-8"
    """Of the input, but of Parquet."""
    delimiter: str | None = None
    """Between the fields of CSV, if not a comma, or not a tab in TSV."""
    has_header: bool = True
    """Whether the first line of CSV and TSV names the columns."""

    @classmethod
    def of(
        cls,
        path: Path | None,
        output: Path,
        *,
        input_format: InputFormat | None,
        output_format: OutputFormat | None,
        **others: Any,
    ) -> FileFormats:
        """Formats that are not given follow from the suffixes; the others are the fields.

        Standard input is text lines, and a stream gets JSON lines. Raises `CommandError` for an
        unknown suffix, and for a format that cannot be streamed.
        """
        if input_format is None:
            known = _INPUT_SUFFIXES
            input_format = "text" if path is None else _by_suffix(path, known, "--input-format")
        if is_stream(output):
            _require_lines(output, output_format)
            output_format = "jsonl"
        elif output_format is None:
            output_format = _by_suffix(output, _OUTPUT_SUFFIXES, "--output-format")
        if input_format == "parquet" and not can_be_read_again(path):
            raise CommandError(f"Parquet cannot be read from {name_of(path)}: name a file")
        formats = cls(input_format=input_format, output_format=output_format, **others)
        require_encoding(formats.text_encoding)
        _require_delimiter(formats.delimiter)
        is_plain = formats.delimiter is None and formats.has_header
        if input_format not in _DELIMITERS and not is_plain:
            raise CommandError("--delimiter and --no-header are for CSV and TSV")
        return formats

    def source(self, path: Path | None) -> Source:
        """The rows of a file, or of standard input without a path."""
        keeps_columns = self.output_format != "npy" and not self.vectors_only
        new_column = self.output_column if keeps_columns else None
        if self.input_format == "parquet":
            from .parquet import ParquetSource

            assert path is not None
            return ParquetSource(path=path, column=self.column, new_column=new_column)
        if self.input_format in _DELIMITERS:
            from .csv import CsvSource

            return CsvSource(
                path=path,
                delimiter=self.delimiter or _DELIMITERS[self.input_format],
                column=self.column,
                new_column=new_column,
                encoding=self.text_encoding,
                has_header=self.has_header,
            )
        from .text import LineSource, json_record, kept_json_record, text_record

        of_json = kept_json_record if keeps_columns else json_record
        record = of_json if self.input_format == "jsonl" else text_record
        return LineSource(
            path=path,
            record=record,
            column=self.column,
            new_column=new_column,
            encoding=self.text_encoding,
        )

    def encoding(self) -> Encoding:
        """How the output is written."""
        if self.output_format == "parquet":
            from .parquet import ParquetEncoding

            return ParquetEncoding(new_column=self.output_column)
        if self.output_format == "jsonl":
            from .text import JsonLinesEncoding

            return JsonLinesEncoding(new_column=self.output_column)
        from .npy import NpyEncoding

        return NpyEncoding()


def _require_delimiter(delimiter: str | None) -> None:
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise CommandError(
            f"--delimiter {delimiter!r}: it is one character, and no quote or line break"
        )


def _require_lines(output: Path, output_format: OutputFormat | None) -> None:
    if output_format not in (None, "jsonl"):
        name = "standard output" if str(output) == "-" else f"{output}, which is not a file"
        raise CommandError(
            f"{output_format} cannot be written to {name}: leave out --output-format for JSON "
            "lines, or name a file after -o"
        )


def _by_suffix(path: Path, suffixes: dict[str, Name], flag: str) -> Name:
    try:
        return suffixes[path.suffix.lower()]
    except KeyError:
        names = ", ".join(dict.fromkeys(map(str, suffixes.values())))
        raise CommandError(
            f"{path}: the suffix {path.suffix!r} is unknown; give the format with {flag}: {names}"
        ) from None
