"""Tables of Arrow: texts out of their columns, vectors and errors into them, and groups of rows.

Dense vectors are a `FixedSizeList`, which Parquet keeps and every reader of Parquet understands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .errors import MillpondError
from .sparse.vectors import SparseVectors

__all__ = [
    "error_texts",
    "numbers_column",
    "row_groups",
    "sparse_column",
    "values_of",
    "vectors_column",
]

ROW_GROUP_BYTES = 64 << 20


def values_of(column: Any) -> list[Any]:
    """The values as Python's; None in the place of a string that is not UTF-8."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(each) for each in column]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return None


def vectors_column(vectors: npt.NDArray[Any], failed: Collection[int] = ()) -> Any:
    """`[n, width]` as a fixed-size list of `width`; null in the rows of `failed`."""
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    mask = _mask(len(vectors), failed)
    return pa.FixedSizeListArray.from_arrays(values, vectors.shape[1], mask=mask)


def numbers_column(numbers: npt.NDArray[Any], failed: Collection[int] = ()) -> Any:
    """`[n]` as numbers; null in the rows of `failed`."""
    mask = _mask(len(numbers), failed)
    return pa.array(numbers, mask=None if mask is None else mask.to_numpy(zero_copy_only=False))


def sparse_column(vectors: SparseVectors, failed: Collection[int] = ()) -> Any:
    """A struct of `indices` and `values`, lists of one length; null in the rows of `failed`."""
    offsets = pa.array(vectors.offsets, pa.int32())
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(values))
        for values in (vectors.indices, vectors.values)
    ]
    mask = _mask(len(vectors), failed)
    return pa.StructArray.from_arrays(lists, ["indices", "values"], mask=mask)


def _mask(rows: int, failed: Collection[int]) -> Any:
    """Of the rows that are null; None where none is."""
    if not failed:
        return None
    mask = np.zeros(rows, dtype=np.bool_)
    mask[list(failed)] = True
    return pa.array(mask)


def row_groups(tables: Iterable[Any]) -> Iterator[Any]:
    """The rows of tables of one schema, in tables of about 64 MiB."""
    waiting: list[Any] = []
    size = 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def error_texts(errors: Mapping[int, Exception], rows: int) -> Any:
    """A string column: what is wrong with a row, null where nothing is."""
    texts = [None if row not in errors else _text(errors[row]) for row in range(rows)]
    return pa.array(texts, pa.string())


def _text(error: Exception) -> str:
    """Without its place in the call, which is not that in the dataset."""
    message = error.args[0] if isinstance(error, MillpondError) and error.args else str(error)
    return f"{type(error).__name__}: {message}"
