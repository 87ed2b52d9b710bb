"""`.npy` files, appended to before their number of rows is known."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from .rows import Rows, Vectors
from .streams import sync

__all__ = ["NpyEncoding"]


class NpyEncoding:
    """A matrix `[rows, width]`; its header has the row count and is rewritten at the end.

    numpy leaves room in a header for the first dimension to grow, so its length stays the same:
    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """

    def checked(self, chunks: Iterator[Rows]) -> Iterator[Rows]:
        return chunks  # no columns are kept

    def head(self, rows: Rows, vectors: Vectors) -> bytes:
        return _header(vectors, rows=0)

    def encode(self, rows: Rows, vectors: Vectors) -> bytes:
        assert isinstance(vectors, np.ndarray)
        return vectors.tobytes()

    def finish(self, part: Path, vectors: Vectors, *, rows: int) -> Path:
        header = _header(vectors, rows=rows)
        assert len(header) == len(_header(vectors, rows=0))
        with part.open("r+b") as file:
            file.write(header)
            sync(file)
        return part


def _header(vectors: Vectors, *, rows: int) -> bytes:
    assert isinstance(vectors, np.ndarray)
    file = BytesIO()
    header = np.lib.format.header_data_from_array_1_0(vectors)
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, vectors.shape[1])})
    return file.getvalue()
