"""Columns of Arrow tables: texts out of them, vectors and errors into them.

Vectors are a `FixedSizeList`, which Parquet keeps and every reader of Parquet understands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import InvalidOption, MillpondError
from ..sparse.vectors import SparseVectors

__all__ = [
    "error_texts",
    "numbers_column",
    "require_columns",
    "sparse_column",
    "values_of",
    "vectors_column",
]


def require_columns(names: Sequence[str], read: Sequence[str], written: Sequence[str]) -> None:
    """Raise `InvalidOption` where a column that is read is missing, or one written is there."""
    for name in read:
        if name not in names:
            raise InvalidOption(
                f"the dataset has no column {name!r}, only {', '.join(map(repr, names))}"
            )
    for name in written:
        if name in names or list(written).count(name) > 1:
            raise InvalidOption(
                f"the dataset would have two columns {name!r}: give the new one another name"
            )


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


def vectors_column(vectors: npt.NDArray[Any], failed: Collection[int]) -> Any:
    """`[n, width]` as a fixed-size list of `width`; null in the rows of `failed`."""
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(
        values, vectors.shape[1], mask=pa.array(_mask(len(vectors), failed)) if failed else None
    )


def numbers_column(numbers: npt.NDArray[Any], failed: Collection[int]) -> Any:
    """`[n]` as numbers; null in the rows of `failed`."""
    return pa.array(numbers, mask=_mask(len(numbers), failed))


def sparse_column(vectors: SparseVectors, failed: Collection[int]) -> Any:
    """A struct of `indices` and `values`, lists of one length; null in the rows of `failed`."""
    offsets = pa.array(vectors.offsets, pa.int32())
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(values))
        for values in (vectors.indices, vectors.values)
    ]
    mask = pa.array(_mask(len(vectors), failed))
    return pa.StructArray.from_arrays(lists, ["indices", "values"], mask=mask)


def _mask(rows: int, failed: Collection[int]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(rows, dtype=np.bool_)
    mask[list(failed)] = True
    return mask


def error_texts(errors: Mapping[int, Exception], rows: int) -> Any:
    """A string column: what is wrong with a row, null where nothing is."""
    texts = [None if row not in errors else _text(errors[row]) for row in range(rows)]
    return pa.array(texts, pa.string())


def _text(error: Exception) -> str:
    """Without its place in the call, which is not that in the dataset."""
    message = error.args[0] if isinstance(error, MillpondError) and error.args else str(error)
    return f"{type(error).__name__}: {message}"
