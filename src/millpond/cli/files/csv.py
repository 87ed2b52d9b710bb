"""CSV and TSV, read row by row. The first line names the columns, and every value is a string."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from ..errors import CommandError
from .rows import Record, Rows, require_column, rows_of
from .streams import ENCODING_HINT, can_be_read_again, name_of, open_lines

__all__ = ["CsvSource"]

LONGEST_FIELD = 1 << 26  # characters; an unclosed quote would read the whole file


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """A file whose rows have fields between delimiters, or standard input where there is no path.

    A field in quotes may hold delimiters, line breaks and, doubled, quotes (RFC 4180). Blank lines
    are skipped.
    """

    path: Path | None
    delimiter: str
    column: str
    """The column with the text."""
    new_column: str | None = None
    """The vectors' column in the output; None where the input's columns are not kept."""
    encoding: str = "utf-8"
    has_header: bool = True
    """Whether the first line names the columns; if not, their places do, from 1."""

    def chunks(self, size: int, *, skip: int = 0) -> Iterator[Rows]:
        with open_lines(self.path, self.encoding) as file:
            lines = _Lines(file, name_of(self.path), self.delimiter)
            records = islice(self._records(lines), skip, None)
            yield from rows_of(records, size, column=self.column, keep=self.new_column is not None)

    def empty(self) -> Rows:
        if self.new_column is None:
            return Rows(texts=[])
        if not can_be_read_again(self.path):
            return Rows(texts=[], columns=[])
        with open_lines(self.path, self.encoding) as file:
            names, _ = self._names(_Lines(file, name_of(self.path), self.delimiter))
        return Rows(texts=[], columns=[], names=names)

    def _records(self, lines: _Lines) -> Iterator[Record]:
        names, first = self._names(lines)
        for fields in chain(first, lines):
            if len(fields) != len(names):
                raise CommandError(
                    f"{lines.place} has {len(fields)} fields, and the first line "
                    f"{f'names {len(names)} columns' if self.has_header else f'has {len(names)}'}"
                )
            yield dict(zip(names, fields, strict=True))

    def _names(self, lines: _Lines) -> tuple[list[str], list[list[str]]]:
        """Of the columns, and the rows that were read to find them."""
        first = next(iter(lines), None)
        if first is None:
            must = "its first line must name the columns" if self.has_header else "it has no rows"
            raise CommandError(f"{lines.name} is empty: {must}")
        names = first if self.has_header else [str(place + 1) for place in range(len(first))]
        hint = "; the first line names the columns, or their places do with --no-header"
        require_column(lines.name, names, self.column, self.new_column, hint=hint)
        return names, [] if self.has_header else [first]


class _Lines:
    """The fields of every row that is not blank. Raises `CommandError` that names the line."""

    def __init__(self, file: Iterable[bytes], name: str, delimiter: str) -> None:
        # Process-wide; never lowered.
        csv.field_size_limit(max(LONGEST_FIELD, csv.field_size_limit()))
        self.name = name
        self._reader = csv.reader(map(_decoded, enumerate(file)), delimiter=delimiter, strict=True)
        self._first_line = 1  # of the last row; only __next__ changes it

    @property
    def place(self) -> str:
        """The first line of the last row."""
        return f"{self.name}, line {self._first_line}"

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> list[str]:
        while True:
            self._first_line = self._reader.line_num + 1
            try:
                fields = next(self._reader)
            except csv.Error as error:
                raise CommandError(f"{self.place}: {_explained(error)}") from None
            except UnicodeDecodeError as error:
                line = self._reader.line_num + 1
                raise CommandError(f"{self.name}, line {line}: {error}{ENCODING_HINT}") from None
            if fields:
                return fields


def _decoded(numbered: tuple[int, bytes]) -> str:
    number, line = numbered
    return (line if number else line.removeprefix(codecs.BOM_UTF8)).decode("utf-8")


def _explained(error: csv.Error) -> str:
    told = str(error)
    if "unexpected end of data" in told or "field larger than" in told:
        return "a quote is not closed"
    if "expected after" in told:
        return "text follows a closing quote; double a quote within quotes"
    return told
