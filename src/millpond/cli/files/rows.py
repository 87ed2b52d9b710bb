"""`Rows`, a slice of an input file, and the protocols of what reads them and what writes them.

No format is known here, and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import CommandError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Encoding",
    "Record",
    "Rows",
    "Source",
    "Vectors",
    "column_is_taken",
    "require_column",
    "rows_of",
]

Record = dict[str, Any]
"""A row by the names of its columns."""


Vectors = npt.NDArray[np.generic]
"""`[n, width]`, in the type that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some consecutive rows of an input."""

    texts: list[str]
    columns: list[Record] | pa.Table | None = None
    """What the output keeps beside the vectors, a record or table row a text; None is nothing."""
    names: Sequence[str] = ()
    """Of columns of strings that no rows would have."""

    def __len__(self) -> int:
        return len(self.texts)


class Source(Protocol):
    """An input that can be read again from the start, unless it is a stream."""

    def chunks(self, size: int, *, skip: int = 0) -> Iterator[Rows]:
        """All rows but the first `skip`, `size` at a time; only the last chunk may be smaller.

        `skip` is a multiple of `size`. Raises `CommandError` for a row that has no text.
        """

    def empty(self) -> Rows:
        """No rows, with the columns that rows would have."""


class Encoding(Protocol):
    """How rows and their vectors are laid down, chunk after chunk, in a part file."""

    def checked(self, chunks: Iterator[Rows]) -> Iterator[Rows]:
        """All chunks of an input as they are. Raises `CommandError` for rows it cannot keep."""

    def head(self, rows: Rows, vectors: Vectors) -> bytes:
        """What the file begins with; `rows` and `vectors` are empty and have only a shape."""

    def encode(self, rows: Rows, vectors: Vectors) -> bytes:
        """A chunk, as it is appended."""

    def finish(self, part: Path, vectors: Vectors, *, rows: int) -> Path:
        """The finished file, made of a part file that holds `rows` rows: itself or one beside it.

        It may be called again on the same part file. `vectors` is empty, as for `head`.
        """


def rows_of(records: Iterator[Record], size: int, *, column: str, keep: bool) -> Iterator[Rows]:
    """Records in chunks of `size`; with `keep`, with all of their columns."""
    while chunk := list(islice(records, size)):
        texts = [record[column] for record in chunk]
        yield Rows(texts=texts, columns=chunk if keep else None)


def require_column(
    place: str, names: Sequence[str], column: str, new_column: str | None, *, hint: str = ""
) -> None:
    """Refuse columns, named by `names`, where the text or what is kept is not plainly one of them.

    `new_column` is what the vectors will be called where all columns are kept, or None.
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
        raise column_is_taken(f"{place} has a column {new_column!r}")


def column_is_taken(what: str) -> CommandError:
    """`what` has a column of the name that the vectors are to have."""
    return CommandError(
        f"{what} already: name another with --output-column, or leave the input's columns out "
        "with --vectors-only"
    )
