"""`TokenVectors`: a vector for each token of each text, and `maxsim`, which compares them.

Pure numpy; it knows nothing of models, devices or queues.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInput, InvalidOption

__all__ = ["EMPTY_DOCUMENT_SCORE", "TokenVectors", "maxsim", "score_documents"]

FloatArray = npt.NDArray[np.float32]


EMPTY_DOCUMENT_SCORE = -1e9
"""Of a document without vectors, below that of any other, as sentence-transformers has it."""


class TokenVectors:
    """The vectors of several texts, end to end; text *i* has
    `vectors[offsets[i]:offsets[i + 1]]`.

    `vectors` is float32 `[total, dimension]`, `offsets` int64 `[texts + 1]` from 0. An index gives
    one text's, `[tokens, dimension]`; a slice, a mask or a list of places gives `TokenVectors`.
    Raises `InvalidInput` where the two do not belong together.
    """

    __slots__ = ("offsets", "vectors")

    def __init__(self, vectors: npt.ArrayLike, offsets: npt.ArrayLike) -> None:
        self.vectors: FloatArray = _as_floats(vectors)
        self.offsets: npt.NDArray[np.int64] = np.asarray(offsets, dtype=np.int64)
        if self.vectors.ndim != 2 or self.offsets.ndim != 1 or not len(self.offsets):
            raise InvalidInput(
                "token vectors are [total, dimension] with offsets [texts + 1], not "
                f"{self.vectors.shape} with {self.offsets.shape}"
            )
        bounds = (int(self.offsets[0]), int(self.offsets[-1]))
        if bounds != (0, len(self.vectors)) or (np.diff(self.offsets) < 0).any():
            raise InvalidInput(
                f"offsets go from {bounds[0]} to {bounds[1]}; of {len(self.vectors)} vectors they "
                "go from 0 to that number, and never back"
            )

    @classmethod
    def of(cls, texts: Iterable[npt.ArrayLike], dimension: int | None = None) -> TokenVectors:
        """Of the vectors of each text, `[any, dimension]`.

        `dimension` is needed only where there may be no texts. Raises `InvalidInput`.
        """
        rows = [_as_floats(each, index) for index, each in enumerate(texts)]
        width = dimension
        for index, each in enumerate(rows):
            if each.ndim != 2 or each.shape[1] != (width or each.shape[1]):
                raise InvalidInput(
                    f"it is {each.shape}; each text has vectors [tokens, {width or 'dimension'}]",
                    index=index,
                )
            width = each.shape[1]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        width = width or 0
        return cls(np.concatenate(rows) if rows else np.empty((0, width), np.float32), offsets)

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self.vectors.shape[1])

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Vectors of each text, `[texts]`."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[FloatArray]:
        pairs = itertools.pairwise(self.offsets.tolist())
        return (self.vectors[start:stop] for start, stop in pairs)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, int | np.integer) and not isinstance(which, bool | np.bool_):
            place = range(len(self))[int(which)]  # as a list takes it, from the end too
            return self.vectors[self.offsets[place] : self.offsets[place + 1]]
        places = np.arange(len(self))[which]
        if isinstance(which, slice) and which.step in (None, 1):
            start, stop = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
            offsets = self.offsets[start : stop + 1]
            return TokenVectors(self.vectors[offsets[0] : offsets[-1]], offsets - offsets[0])
        return TokenVectors.of([self[place] for place in places.tolist()], self.dimension)

    def to_list(self) -> list[list[list[float]]]:
        """Of each text its vectors, as Python's numbers: what JSON takes."""
        return [rows.tolist() for rows in self]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenVectors):
            return NotImplemented
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(
            self.vectors, other.vectors, equal_nan=True
        )

    __hash__ = None  # type: ignore[assignment]  # arrays may change

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenVectors, (self.vectors, self.offsets)

    def __repr__(self) -> str:
        return (
            f"TokenVectors(texts={len(self)}, vectors={len(self.vectors)}, "
            f"dimension={self.dimension})"
        )


def maxsim(
    query: Any,
    documents: TokenVectors | Sequence[npt.ArrayLike] | npt.ArrayLike,
    *,
    mean: bool = False,
) -> FloatArray:
    """How well documents answer a query: float32 `[documents]`.

    The sum over the query's vectors of the largest dot product with any vector of the document
    (late interaction; Khattab and Zaharia, ColBERT, SIGIR 2020). With `mean` it is divided by the
    query's vectors: sentence-transformers calls that `meanmaxsim`.

    `query` is `[tokens, dimension]`; `documents` are `TokenVectors`, or a list of such arrays, or
    one. Several queries, as `TokenVectors` or a list, give `[queries, documents]`. A document
    without vectors scores -1e9, below all others. A score depends on nothing but its query and its
    document, to the bit.

    Raises `InvalidInput` for arrays of other shapes or of two dimensions.
    """
    if not isinstance(mean, bool):
        raise InvalidOption(f"mean={mean!r}: it must be True or False")
    is_single = not isinstance(query, TokenVectors | list | tuple) or _is_matrix(query)
    queries, found = _ragged(query, "query"), _ragged(documents, "documents")
    if len(queries) and len(found) and queries.dimension != found.dimension:
        raise InvalidInput(
            f"the query's vectors have {queries.dimension} dimensions and those of the documents "
            f"{found.dimension}; they are of different models"
        )
    scores = np.empty((len(queries), len(found)), dtype=np.float32)
    for place, one in enumerate(queries):
        scores[place] = score_documents(one, found, mean=mean)
    return scores[0] if is_single else scores


def score_documents(
    query: FloatArray, documents: Iterable[FloatArray], *, mean: bool = False
) -> list[np.float32]:
    """The scores of documents `[tokens, dimension]` for a query `[tokens, dimension]`.

    Each is a product of its own: how one rounds depends on its shape.
    """
    turned = np.ascontiguousarray(query.T)
    scores = [
        (rows @ turned).max(axis=0).sum(dtype=np.float32)
        if len(rows)
        else np.float32(EMPTY_DOCUMENT_SCORE)
        for rows in documents
    ]
    return [score / np.float32(max(len(query), 1)) for score in scores] if mean else scores


def _is_matrix(value: Any) -> bool:
    """Whether it is a list of lists of numbers, and not of matrices."""
    return bool(len(value)) and np.ndim(value[0]) == 1


def _ragged(value: Any, name: str) -> TokenVectors:
    if isinstance(value, TokenVectors):
        return value
    try:
        if isinstance(value, list | tuple) and not _is_matrix(value):
            return TokenVectors.of(value)
        array = _as_floats(value)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error.args[0]}", index=error.index) from None
    if array.ndim not in (2, 3):
        raise InvalidInput(
            f"{name}: expected vectors [tokens, dimension], TokenVectors or a list of arrays, not "
            f"an array {array.shape}"
        )
    return TokenVectors.of(array if array.ndim == 3 else [array])


def _as_floats(value: Any, index: int = 0) -> FloatArray:
    """As float32; a tensor of torch comes from its device."""
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu().float()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:  # lists of several lengths
        raise InvalidInput(f"expected vectors of one length: {error}", index=index) from None
    if array.dtype.kind not in "fiu":
        raise InvalidInput(f"expected numbers, not {array.dtype}", index=index)
    return array.astype(np.float32, copy=False)
