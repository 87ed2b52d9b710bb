"""Text lines and JSON lines, read and written."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ...multi_vector.token_vectors import TokenVectors
from ...sparse.vectors import SparseVectors
from ..errors import CommandError
from .rows import Record, Rows, Vectors, column_exists, rows_of
from .streams import ENCODING_HINT, name_of, open_lines

__all__ = ["JsonLinesEncoding", "LineSource", "json_record", "kept_json_record", "text_record"]

_LONG_NUMBER = re.compile(r"\d{19}")


@dataclass(frozen=True, kw_only=True)
class LineSource:
    """A file with one row per line, or standard input without a path."""

    path: Path | None
    record: Callable[[str, str], Record | None]
    """From a line and the text's column to the row, or None for no row."""
    column: str
    """The column with the text."""
    new_column: str | None = None
    """The vectors' column in the output; None where the input's columns are not kept."""
    encoding: str = "utf-8"

    def chunks(self, size: int, *, skip: int = 0) -> Iterator[Rows]:
        with open_lines(self.path, self.encoding) as file:
            records = islice(self._records(file), skip, None)
            yield from rows_of(records, size, column=self.column, keep=self.new_column is not None)

    def empty(self) -> Rows:
        return Rows(texts=[], columns=[] if self.new_column is not None else None)

    def _records(self, file: Iterable[bytes]) -> Iterator[Record]:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                record = self.record(line.decode("utf-8"), self.column)
            except ValueError as error:  # not UTF-8, not JSON, or not a row
                hint = ENCODING_HINT if isinstance(error, UnicodeDecodeError) else ""
                raise CommandError(f"{name_of(self.path)}, line {number}: {error}{hint}") from None
            if record is None:
                continue
            if self.new_column is not None and self.new_column in record:
                place = f"{name_of(self.path)}, line {number}"
                raise column_exists(f"{place} has a {self.new_column!r}")
            yield record


def text_record(line: str, column: str) -> Record:
    """Every line is a text, including empty ones."""
    return {column: line.removesuffix("\n").removesuffix("\r")}


def json_record(line: str, column: str) -> Record | None:
    """A JSON object with a text in `column`, or a JSON string; None for a blank line.

    Raises `ValueError` for anything else.
    """
    if not line.strip():
        return None
    value = orjson.loads(line)
    if isinstance(value, str):
        return {column: value}
    if not isinstance(value, dict):
        raise ValueError(f"expected an object or a string, not {line.strip()[:40]}")
    if column not in value:
        known = ", ".join(map(repr, value)) or "nothing"
        raise ValueError(f"there is no {column!r}, only {known}: name the text with --column")
    if not isinstance(value[column], str):
        raise ValueError(f"{column!r} is {orjson.dumps(value[column]).decode()[:40]}, not a string")
    return value


def kept_json_record(line: str, column: str) -> Record | None:
    """`json_record` for a row whose other columns are kept, so integers must be exact.

    orjson converts one beyond 64 bits to a float. Raises `ValueError` for that, too.
    """
    record = json_record(line, column)
    if _LONG_NUMBER.search(line):
        json.loads(line, parse_int=_require_64_bits)
    return record


def _require_64_bits(digits: str) -> None:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(
            f"the integer {digits[:40]} has more than 64 bits, and would not be kept exactly: make "
            "it a string, or leave the input's columns out with --vectors-only"
        )


@dataclass(frozen=True, kw_only=True)
class JsonLinesEncoding:
    """One object per line: the row's columns and, as `new_column`, its vector.

    That is a list; of a sparse one, an object of two, `indices` and `values`; of those of tokens,
    a list of lists.
    """

    new_column: str

    def checked(self, chunks: Iterator[Rows]) -> Iterator[Rows]:
        row = 0
        for chunk in chunks:
            for record in _records(chunk, first=row):
                try:
                    orjson.dumps(record)
                except TypeError as error:
                    raise _unwritable(f"row {row}", error) from None
                row += 1
            yield chunk

    def head(self, rows: Rows, vectors: Vectors) -> bytes:
        return b""

    def encode(self, rows: Rows, vectors: Vectors) -> bytes:
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        try:
            return b"".join(
                orjson.dumps({**record, self.new_column: vector}, option=options)
                for record, vector in zip(_records(rows), _json_vectors(vectors), strict=True)
            )
        except TypeError as error:
            raise _unwritable("a row", error) from None

    def finish(self, part: Path, vectors: Vectors, *, rows: int) -> Path:
        return part


def _json_vectors(vectors: Vectors) -> Iterable[Any]:
    if isinstance(vectors, SparseVectors):
        return ({"indices": vector.indices, "values": vector.values} for vector in vectors)
    if isinstance(vectors, TokenVectors):
        return map(np.ascontiguousarray, vectors)
    return np.ascontiguousarray(vectors)  # which orjson requires


def _records(rows: Rows, *, first: int = 0) -> list[Record]:
    if rows.columns is None:
        return [{}] * len(rows)
    if isinstance(rows.columns, list):
        return rows.columns
    try:
        records: list[Record] = rows.columns.to_pylist()
    except UnicodeDecodeError as error:
        raise _unwritable(f"among rows {first} to {first + len(rows) - 1}, one", error) from None
    return records


def _unwritable(place: str, error: Exception) -> CommandError:
    return CommandError(
        f"{place} has a column that cannot be written as JSON ({error}): write Parquet, or leave "
        "the input's columns out with --vectors-only"
    )
