"""`SparseVectors`: the sparse vectors of several texts, as compressed sparse rows (CSR).

Pure numpy, and scipy where a caller asks for its matrix; it knows nothing of models or queues.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInput, InvalidOption
from ..outputs import RaggedRows

__all__ = ["SparseVector", "SparseVectors", "Terms"]

Terms = Callable[[Sequence[int]], Sequence[str]]
"""The names of dimensions, such as the tokens of a vocabulary."""


@dataclass(frozen=True, eq=False)
class SparseVector:
    """The sparse vector of one text. It unpacks into its indices and its values."""

    indices: npt.NDArray[np.int32]
    """The dimensions that are not zero, ascending, `[active]`."""
    values: npt.NDArray[np.float32]
    """Their weights, `[active]`."""
    dimension: int
    """Dimensions in all: the size of the vocabulary as a rule."""
    terms: Terms | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.indices, self.values))

    def __len__(self) -> int:
        """Dimensions that are not zero."""
        return len(self.indices)

    def to_dict(self) -> dict[int, float]:
        """Weights by dimension."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    def tokens(self, top_k: int | None = None) -> list[tuple[str, float]]:
        """The terms and their weights, the heaviest first and ties by dimension.

        Raises `InvalidOption` for a vector whose dimensions are no terms.
        """
        return _heaviest(self, _require_terms(self.terms), top_k)

    def to_dense(self) -> npt.NDArray[np.float32]:
        """float32 `[dimension]`."""
        dense = np.zeros(self.dimension, dtype=np.float32)
        dense[self.indices] = self.values
        return dense

    def __reduce__(self) -> tuple[Any, ...]:
        kept = _kept_terms(self.terms, self.indices)
        return SparseVector, (self.indices, self.values, self.dimension, kept)


@dataclass(frozen=True, eq=False, repr=False)
class SparseVectors(Sequence[SparseVector]):
    """Sparse vectors: that of text *i* has `indices[offsets[i]:offsets[i + 1]]`, as `values` too.

    Row *i* is a `SparseVector`; a slice, a mask or an array of places gives `SparseVectors`.
    """

    offsets: npt.NDArray[np.int64]
    """`[n + 1]`, from 0."""
    indices: npt.NDArray[np.int32]
    """The dimensions that are not zero, ascending within a text, `[active]`."""
    values: npt.NDArray[np.float32]
    """Their weights, `[active]`."""
    dimension: int
    """Dimensions in all: the size of the vocabulary as a rule."""
    terms: Terms | None = None
    """The names of dimensions; None where they have none."""

    @classmethod
    def of(
        cls, rows: Iterable[tuple[Any, Any]], dimension: int, *, terms: Terms | None = None
    ) -> SparseVectors:
        """Of the indices and values of each text, in any order. Raises `InvalidInput`.

        What is handed in is checked: dimensions that there are, each once.
        """
        checked = [_checked(row, dimension, place) for place, row in enumerate(rows)]
        return cls(
            _offsets([len(indices) for indices, _ in checked]),
            np.concatenate([np.empty(0, np.int32), *(indices for indices, _ in checked)]),
            np.concatenate([np.empty(0, np.float32), *(values for _, values in checked)]),
            dimension,
            terms,
        )

    @classmethod
    def from_dicts(
        cls, weights: Iterable[Mapping[int, float]], dimension: int, *, terms: Terms | None = None
    ) -> SparseVectors:
        """Of weights by dimension, the inverse of `to_dicts`. Raises `InvalidInput`."""
        rows = ((list(each), list(each.values())) for each in weights)
        return cls.of(rows, dimension, terms=terms)

    @classmethod
    def of_rows(
        cls, rows: Sequence[npt.NDArray[np.float32]], dimension: int, terms: Terms | None
    ) -> SparseVectors:
        """Of rows of a dimension and its weight, `[active, 2]` for each text, as models give."""
        joined = RaggedRows.of(rows, 2)
        indices = joined.values[:, 0].astype(np.int32)
        values = np.ascontiguousarray(joined.values[:, 1])
        return cls(joined.offsets, indices, values, dimension, terms)

    @property
    def shape(self) -> tuple[int, int]:
        """Texts and dimensions."""
        return len(self), self.dimension

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.offsets.nbytes + self.indices.nbytes + self.values.nbytes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[SparseVector]:
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, which: int) -> SparseVector: ...
    @overload
    def __getitem__(self, which: slice) -> SparseVectors: ...
    @overload
    def __getitem__(self, which: Any) -> Any: ...
    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, int | np.integer) and not isinstance(which, bool):
            place = range(len(self))[which]
            row = slice(self.offsets[place], self.offsets[place + 1])
            return SparseVector(self.indices[row], self.values[row], self.dimension, self.terms)
        places = np.arange(len(self))[which]
        lengths = np.diff(self.offsets)[places]
        offsets = _offsets(lengths)
        taken = np.arange(offsets[-1]) + np.repeat(self.offsets[places] - offsets[:-1], lengths)
        indices, values = self.indices[taken], self.values[taken]
        return SparseVectors(offsets, indices, values, self.dimension, self.terms)

    def to_dicts(self) -> list[dict[int, float]]:
        """For each text its weights by dimension."""
        return [row.to_dict() for row in self]

    def tokens(self, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """For each text its terms and their weights, the heaviest first and ties by dimension.

        Raises `InvalidOption` where dimensions are no terms.
        """
        terms = _require_terms(self.terms)
        return [_heaviest(row, terms, top_k) for row in self]

    def to_scipy(self) -> Any:
        """A `scipy.sparse.csr_array` float32 `[n, dimension]`. Raises `ImportError` without it."""
        try:
            scipy: Any = importlib.import_module("scipy.sparse")
        except ImportError as error:
            raise ImportError("to_scipy needs scipy: pip install scipy") from error
        return scipy.csr_array((self.values, self.indices, self.offsets), shape=self.shape)

    def to_dense(self) -> npt.NDArray[np.float32]:
        """float32 `[n, dimension]`, which is large."""
        dense = np.zeros(self.shape, dtype=np.float32)
        dense[np.repeat(np.arange(len(self)), np.diff(self.offsets)), self.indices] = self.values
        return dense

    def dot(self, other: SparseVectors) -> npt.NDArray[np.float32]:
        """The inner product of each of these with each of the others: float32 `[n, m]`.

        That is the score of queries for documents. Raises `InvalidInput` for other dimensions.
        """
        if not isinstance(other, SparseVectors) or other.dimension != self.dimension:
            raise InvalidInput(
                f"expected SparseVectors of {self.dimension} dimensions, as these have; got "
                f"{other!r}"
            )
        scores = np.zeros((len(self), len(other)), dtype=np.float32)
        owners = np.repeat(np.arange(len(other)), np.diff(other.offsets))
        for place, query in enumerate(self):
            products = query.to_dense()[other.indices] * other.values
            scores[place] = np.bincount(owners, weights=products, minlength=len(other))
        return scores

    def equals(self, other: object) -> bool:
        """Whether both are the same to the bit."""
        return (
            isinstance(other, SparseVectors)
            and self.dimension == other.dimension
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.indices, other.indices)
            and np.array_equal(self.values, other.values)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = (self.offsets, self.indices, self.values)
        return SparseVectors, (*arrays, self.dimension, _kept_terms(self.terms, self.indices))

    def __repr__(self) -> str:
        return (
            f"SparseVectors(texts={len(self)}, dimension={self.dimension}, "
            f"active={len(self.indices)})"
        )


def _checked(
    row: tuple[Any, Any], dimension: int, place: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    indices, values = (np.asarray(each) for each in row)
    if indices.ndim != 1 or indices.shape != values.shape:
        raise InvalidInput("its indices and values are not two flat lists of a length", index=place)
    if not len(indices):
        return indices.astype(np.int32), values.astype(np.float32)
    if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= dimension:
        raise InvalidInput(
            f"its indices are to be whole numbers from 0 to {dimension - 1}", index=place
        )
    order = np.argsort(indices, kind="stable")
    indices = indices[order].astype(np.int32)
    if (np.diff(indices) == 0).any():
        raise InvalidInput("it names a dimension twice", index=place)
    return indices, values[order].astype(np.float32)


def _offsets(lengths: Any) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _require_terms(terms: Terms | None) -> Terms:
    if terms is None:
        raise InvalidOption("the dimensions of these vectors are no tokens, so they have no names")
    return terms


def _heaviest(row: SparseVector, terms: Terms, top_k: int | None) -> list[tuple[str, float]]:
    order = np.argsort(-row.values, kind="stable")[:top_k]
    names = terms(row.indices[order].tolist())
    return list(zip(names, row.values[order].tolist(), strict=True))


def _kept_terms(terms: Terms | None, indices: npt.NDArray[np.int32]) -> Terms | None:
    """Of all terms those that are in use, which can be pickled."""
    if terms is None:
        return None
    used = np.unique(indices).tolist()
    return partial(_looked_up, dict(zip(used, terms(used), strict=True)))


def _looked_up(names: Mapping[int, str], indices: Sequence[int]) -> list[str]:
    return [names[index] for index in indices]
