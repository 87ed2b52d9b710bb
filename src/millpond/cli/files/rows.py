"""`Rows`, a chunk of an input file, and `Source` and `Encoding`, which read and write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ...multi_vector.token_vectors import TokenVectors
from ...sparse.vectors import SparseVectors
from ..errors import CommandError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Encoding",
    "Record",
    "Rows",
    "Source",
    "Vectors",
    "column_exists",
    "require_column",
    "rows_of",
]

Record = dict[str, Any]
"""A row: column name to value."""
Vectors = npt.NDArray[np.generic] | SparseVectors | TokenVectors
"""`[n, width]`, of the output dtype; or sparse; or several of each text."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some consecutive rows of an input."""

    texts: list[str]
    columns: list[Record] | pa.Table | None = None
    """The columns to copy to the output, a record or table row per text; or None."""
    names: Sequence[str] = ()
    """String columns of an input without rows."""

    def __len__(self) -> int:
        return len(self.texts)


class Source(Protocol):
    """An input, which can be read repeatedly unless it is a stream."""

    def chunks(self, size: int, *, skip: int = 0) -> Iterator[Rows]:
        """The rows after the first `skip`, `size` at a time; only the last chunk may be smaller.

        `skip` is a multiple of `size`. Raises `CommandError` for a row without a text.
        """

    def empty(self) -> Rows:
        """No rows, but their columns."""


class Encoding(Protocol):
    """How chunks of rows and their vectors are written to a part file."""

    def checked(self, chunks: Iterator[Rows]) -> Iterator[Rows]:
        """The chunks unchanged. Raises `CommandError` for rows that cannot be written."""

    def head(self, rows: Rows, vectors: Vectors) -> bytes:
        """The start of the file; `rows` and `vectors` are empty."""

    def encode(self, rows: Rows, vectors: Vectors) -> bytes:
        """The bytes of a chunk."""

    def finish(self, part: Path, vectors: Vectors, *, rows: int) -> Path:
        """The finished file of a part file with `rows` rows: the same or another one.

        May be repeated on the same part file. `vectors` is empty, as for `head`.
        """


def rows_of(records: Iterator[Record], size: int, *, column: str, keep: bool) -> Iterator[Rows]:
    """Records in chunks of `size`; with `keep`, with all of their columns."""
    while chunk := list(islice(records, size)):
        texts = [record[column] for record in chunk]
        yield Rows(texts=texts, columns=chunk if keep else None)


def require_column(
    place: str, names: Sequence[str], column: str, new_column: str | None, *, hint: str = ""
) -> None:
    """Raise `CommandError` where a column that is read is missing, or its name is not unique.

    `new_column` is the vectors' column in the output, or None where only the text is read.
    """
    if column not in names:
        raise CommandError(
            f"{place}: there is no column {column!r}, only {', '.join(map(repr, names))}: name "
            f"the text with --column{hint}"
        )
    read = [column] if new_column is None else names
    twice = next((name for name in read if names.count(name) > 1), None)
    if twice is not None:
        raise CommandError(
            f"{place} has several columns {twice!r}: rename them"
            + (", or leave them out with --vectors-only" if twice != column else "")
        )
    if new_column in names:
        raise column_exists(f"{place} has a column {new_column!r}")


def column_exists(what: str) -> CommandError:
    """The error where `what` has the vectors' column."""
    return CommandError(
        f"{what} already: name another with --output-column, or leave the input's columns out "
        "with --vectors-only"
    )
