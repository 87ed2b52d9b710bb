"""`Rows`, a slice of an input file, and the protocols of what reads them and what writes them.

No format is known here, and no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Encoding", "Rows", "Source", "Vectors"]

Vectors = npt.NDArray[np.generic]
"""`[n, width]`, in the type that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some consecutive rows of an input."""

    texts: list[str]
    columns: list[dict[str, Any]] | pa.Table | None = None
    """What the output keeps beside the vectors, a record or table row a text; None is nothing."""

    def __len__(self) -> int:
        return len(self.texts)


class Source(Protocol):
    """An input that can be read again from the start, unless it is standard input."""

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
