"""Parquet files, read a chunk at a time and written from a part file that can be appended to.

A Parquet file is readable only once its footer is written, so the part file is a sequence of Arrow
streams, one per chunk, and valid after each of them. At the end it is rewritten as Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...arrow import row_groups, sparse_column, vectors_column
from ...multi_vector.token_vectors import TokenVectors
from ...sparse.vectors import SparseVectors
from ..errors import CommandError
from .rows import Rows, Vectors, require_column
from .streams import named_error, sync

__all__ = ["ParquetEncoding", "ParquetSource"]


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """A Parquet file with the text in `column`."""

    path: Path
    column: str
    new_column: str | None = None
    """The vectors' column in the output; None where the input's columns are not kept."""

    def chunks(self, size: int, *, skip: int = 0) -> Iterator[Rows]:
        with self._open() as (file, names):
            batches = file.iter_batches(
                batch_size=size,
                columns=names,
                use_threads=False,  # the cores are for the model
            )
            for number, batch in enumerate(islice(batches, skip // size, None), skip // size):
                yield self._rows(pa.Table.from_batches([batch]), first=number * size)

    def empty(self) -> Rows:
        with self._open() as (file, names):
            return self._rows(file.schema_arrow.empty_table().select(names), first=0)

    def _rows(self, table: Any, *, first: int) -> Rows:
        texts = self._texts(table.column(self.column), first=first)
        for row, text in enumerate(texts, start=first):
            if not isinstance(text, str):
                raise CommandError(
                    f"{self.path}, row {row}: {self.column!r} is {str(text)[:40]}, not a string"
                )
        return Rows(texts=texts, columns=table if self.new_column is not None else None)

    def _texts(self, column: Any, *, first: int) -> list[Any]:
        try:
            texts: list[Any] = column.to_pylist()
            return texts
        except UnicodeDecodeError as error:
            row = first + _first_not_decoded(column)
            raise CommandError(
                f"{self.path}, row {row}: {self.column!r} is not UTF-8 ({error.reason})"
            ) from None

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, list[str]]]:
        """The file, and the names of the columns to read."""
        self.path.stat()  # for a short error if the file does not exist
        try:
            with pq.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                require_column(str(self.path), names, self.column, self.new_column)
                yield file, names if self.new_column is not None else [self.column]
        except (pa.ArrowException, OSError) as error:
            raise CommandError(f"{self.path} cannot be read as Parquet: {error}") from None


def _first_not_decoded(column: Any) -> int:
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return row
    raise AssertionError("every value was decoded")


@dataclass(frozen=True, kw_only=True)
class ParquetEncoding:
    """The rows' columns and, as `new_column`, their vectors: lists of one length.

    Sparse ones are a struct of two lists, `indices` and `values`, and those of tokens a list of
    such lists for each text.
    """

    new_column: str

    def checked(self, chunks: Iterator[Rows]) -> Iterator[Rows]:
        """A column with integers in one chunk and floats in another becomes float64."""
        schema = pa.schema([])
        large: dict[tuple[str, str], Any] = {}  # columns with integers that float64 cannot hold
        for chunk in chunks:
            # A Parquet file has one schema for all rows.
            table = _columns(chunk) if isinstance(chunk.columns, list) else None
            if table is not None:
                schema = _unified([schema, table.schema])
                for name in table.column_names:
                    column = table.select([name])
                    key = (name, str(column.schema.field(0).type))
                    if key not in large and not _casts(column, _as_floats(column.schema)):
                        large[key] = column
            yield chunk
        for column in large.values():
            _fitted(column, pa.schema([schema.field(name) for name in column.column_names]))

    def head(self, rows: Rows, vectors: Vectors) -> bytes:
        return self.encode(rows, vectors)

    def encode(self, rows: Rows, vectors: Vectors) -> bytes:
        lists = _lists(vectors)
        table = _columns(rows)
        if table is None:
            table = pa.table({self.new_column: lists})
        else:
            table = table.append_column(self.new_column, lists)
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, table.schema) as stream:
            stream.write_table(table)
        encoded: bytes = buffer.getvalue().to_pybytes()
        return encoded

    def finish(self, part: Path, vectors: Vectors, *, rows: int) -> Path:
        finished = part.with_name(f"{part.name}.parquet")
        try:
            with named_error(finished):
                self._write(part, finished)
        except BaseException:  # free the space, as the disk may be full
            finished.unlink(missing_ok=True)
            raise
        return finished

    def _write(self, part: Path, finished: Path) -> None:
        schema = _schema(part, last=self.new_column)
        with (
            finished.open("wb") as file,
            pq.ParquetWriter(file, schema, store_schema=True) as writer,
        ):
            for table in row_groups(_fitted(chunk, schema) for chunk in _chunks(part)):
                writer.write_table(table, row_group_size=max(1, len(table)))
            writer.close()  # writes the footer
            sync(file)


def _lists(vectors: Vectors) -> Any:
    if isinstance(vectors, SparseVectors):
        return sparse_column(vectors)
    if isinstance(vectors, TokenVectors):
        offsets = pa.array(vectors.offsets, pa.int32())
        return pa.ListArray.from_arrays(offsets, vectors_column(vectors.vectors))
    return vectors_column(vectors)


def _columns(rows: Rows) -> Any:
    """The columns of the rows as a table, or None without any."""
    if not isinstance(rows.columns, list):
        return rows.columns
    if rows.names:
        return pa.schema([(name, pa.string()) for name in rows.names]).empty_table()
    names = dict.fromkeys(name for record in rows.columns for name in record)
    if not names:
        return None
    try:
        return pa.table({name: [record.get(name) for record in rows.columns] for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise _mixed(error) from None


def _unified(schemas: list[Any]) -> Any:
    """The schema that tables of all of these can be cast to."""
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _mixed(error) from None


def _as_floats(schema: Any) -> Any:
    """The schema with float64 for int64, in lists and structs too."""
    return pa.schema([field.with_type(_as_float(field.type)) for field in schema])


def _as_float(kind: Any) -> Any:
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_float(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_as_float(kind.value_type))
    return pa.float64() if pa.types.is_int64(kind) else kind


def _casts(table: Any, schema: Any) -> bool:
    try:
        table.cast(schema)
    except pa.ArrowInvalid:
        return False
    return True


def _schema(part: Path, *, last: str) -> Any:
    """The schema of all chunks: JSON lines may have different columns."""
    schemas: list[Any] = []
    for table in _chunks(part, mapped=True):
        if table.schema not in schemas:
            schemas.append(table.schema)
    schema = _unified(schemas)
    fields = sorted(schema, key=lambda field: bool(field.name == last))
    return pa.schema(fields, metadata=schema.metadata)


def _mixed(error: Exception) -> CommandError:
    return CommandError(
        f"a column has values of several types, which Parquet does not support ({error}): write "
        "JSON lines, or leave the input's columns out with --vectors-only"
    )


def _fitted(table: Any, schema: Any) -> Any:
    """A chunk in the schema of all: missing columns are null."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowInvalid as error:
        raise _mixed(error) from None


def _chunks(part: Path, *, mapped: bool = False) -> Iterator[Any]:
    """The streams of a part file; `mapped` reads only what is used."""
    with (pa.memory_map if mapped else pa.OSFile)(str(part)) as source:
        while source.tell() < source.size():
            with pa.ipc.open_stream(source) as stream:
                yield stream.read_all()
