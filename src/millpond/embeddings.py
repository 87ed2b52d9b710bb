"""`Embeddings`, the result of a call, and `OutputSpec`, how a model's vectors become its rows.

Pure numpy; it knows nothing of models, devices or queues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .errors import InvalidInput, InvalidOption
from .outputs import CallResult, Timings, require_dimensions, unit_length

__all__ = ["Embeddings", "OutputDType", "OutputSpec", "Timings", "quantize", "similarity"]

OutputDType = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
FloatArray = npt.NDArray[np.float32]

_ONE_VECTOR = (
    "{dtype} takes each dimension's range from the vectors of the call, and one vector has none: "
    "embed it as float32 and call millpond.quantize with the documents' ranges"
)


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """What the caller wants of each vector: fewer dimensions, unit length, another type."""

    dimension: int
    """Dimensions the model gives."""
    dimensions: int | None = None
    """Keep only the first N dimensions (Matryoshka); the rest is dropped and the norm restored."""
    saved_dimensions: int | None = None
    """What the checkpoint keeps when the caller says nothing; it leaves the norm as it falls."""
    normalize: bool | None = None
    """Scale every vector to unit length; None leaves the model's own length."""
    dtype: OutputDType = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str) or self.dtype not in get_args(OutputDType):
            raise InvalidOption(
                f"output_dtype={self.dtype!r}: choose one of {', '.join(get_args(OutputDType))}"
            )
        require_dimensions(self.dimensions, self.dimension)

    @cached_property
    def width(self) -> int:
        """Dimensions kept."""
        if self.dimensions is not None:
            return int(self.dimensions)
        return min(self.dimension, self.saved_dimensions or self.dimension)

    @cached_property
    def calibrated(self) -> bool:
        """Whether the type needs every vector of the call at once."""
        return self.dtype in ("int8", "uint8")

    def allocate(self, texts: int) -> npt.NDArray[Any]:
        """An array for the rows of `texts` texts, `[texts, …]` in the type rows are kept in.

        Raises `InvalidOption` where their vectors could not be quantised when they are all there.
        """
        if self.calibrated and texts == 1:
            raise InvalidOption(_ONE_VECTOR.format(dtype=self.dtype))
        if self.dtype in ("binary", "ubinary"):
            packed = np.dtype(np.int8 if self.dtype == "binary" else np.uint8)
            return np.zeros((texts, (self.width + 7) // 8), dtype=packed)
        floating = np.dtype(np.float16 if self.dtype == "float16" else np.float32)
        room = np.empty((texts, self.width), dtype=floating)
        room.fill(np.nan)  # a third of the time of numpy's `full`, which every query would wait for
        return room

    def rows(self, vectors: FloatArray) -> npt.NDArray[Any]:
        """The model's vectors `[n, dimension]` as rows for `allocate`'s array."""
        cut = self.dimensions is not None and self.width < self.dimension
        if self.width < self.dimension:
            vectors = vectors[:, : self.width]
        if self.normalize or (cut and self.normalize is None):
            vectors = unit_length(vectors)
        is_done = self.calibrated or (self.dtype == "float32" and vectors.dtype == np.float32)
        return vectors if is_done else quantize(vectors, self.dtype)

    def store(
        self, room: npt.NDArray[Any], texts: npt.NDArray[np.int64], rows: npt.NDArray[Any]
    ) -> None:
        """Put rows of these texts into `allocate`'s array."""
        room[texts] = rows

    @property
    def overflow_advice(self) -> str:
        """What to say of a vector that is finite in float32 alone."""
        return f"its vector is too long for {self.dtype}; ask for output_dtype='float32'"

    def result(self, rows: npt.NDArray[Any], **of_call: Any) -> Embeddings:
        """The embeddings of a call."""
        return Embeddings(rows=rows, output=self, **of_call)

    def finish(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What needs all rows of the call at once: the calibrated integer types."""
        return quantize(rows, self.dtype) if self.calibrated else rows


def quantize(
    vectors: npt.NDArray[Any],
    dtype: OutputDType,
    *,
    ranges: FloatArray | None = None,
) -> npt.NDArray[Any]:
    """Vectors `[n, dim]` in another type, as sentence-transformers' `quantize_embeddings` has it.

    `binary` and `ubinary` pack one sign bit a dimension, `[n, ceil(dim / 8)]`. `int8` and
    `uint8` map each dimension's range onto 256 levels; `ranges` is `[2, dim]`, the lowest and
    highest value of each dimension, and is taken from `vectors` when left out. Queries must be
    quantised with the ranges of the documents they are compared with.

    Raises `InvalidOption` for another type, and when ranges would have to come from one vector.
    """
    if not isinstance(dtype, str) or dtype not in get_args(OutputDType):
        raise InvalidOption(f"dtype={dtype!r}: choose one of {', '.join(get_args(OutputDType))}")
    if dtype in ("float32", "float16"):
        return vectors.astype(np.dtype(dtype), copy=False)
    if dtype in ("binary", "ubinary"):
        packed: npt.NDArray[Any] = np.packbits(vectors > 0, axis=-1)
        if dtype == "binary":
            packed = (packed.astype(np.int16) - 128).astype(np.int8)
        return packed
    if ranges is None:
        if len(vectors) == 1:
            raise InvalidOption(_ONE_VECTOR.format(dtype=dtype))
        ranges = _ranges(vectors)
    lowest, highest = np.asarray(ranges, dtype=np.float32)
    steps = (highest - lowest) / 255
    levels = np.floor((vectors - lowest) / np.where(steps == 0, 1, steps))
    levels = np.clip(np.nan_to_num(levels), 0, 255)  # a failed text is NaN
    quantized: npt.NDArray[Any] = (
        levels.astype(np.uint8) if dtype == "uint8" else (levels - 128).astype(np.int8)
    )
    return quantized


def similarity(a: npt.ArrayLike, b: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
    """Cosine similarities, float32: of vectors `[n, dim]` to vectors `[m, dim]`, `[n, m]`.

    Element `[i, j]` is that of `a[i]` and `b[j]`, between -1 and 1. One vector, `[dim]`, on either
    side leaves its axis out: `[m]`, `[n]` or `[]`. Without `b` it is of `a` to itself. A vector of
    zeros is similar to nothing: 0. It is computed in float32, also for float16 and float64.

    Raises `InvalidInput` for arrays of other shapes or of different dimensions, and for integer
    vectors, which do not say how they were quantised.
    """
    left = _vectors("a", a)
    right = left if b is None else _vectors("b", b)
    if left.shape[-1] != right.shape[-1]:
        raise InvalidInput(
            f"a has {left.shape[-1]} dimensions and b {right.shape[-1]}: vectors of one model, cut "
            "to the same dimensions, can be compared"
        )
    rows, others = (unit_length(np.atleast_2d(side)) for side in (left, right))
    found: npt.NDArray[np.float32] = (rows @ others.T).clip(-1, 1)
    return found.reshape(left.shape[:-1] + right.shape[:-1])


def _vectors(name: str, value: npt.ArrayLike) -> FloatArray:
    try:
        vectors = np.asarray(value)
    except ValueError:
        raise InvalidInput(f"{name}: its vectors have different lengths") from None
    if vectors.ndim not in (1, 2):
        raise InvalidInput(
            f"{name} has {vectors.ndim} axes: give one vector [dim], or several [n, dim]"
        )
    if not np.issubdtype(vectors.dtype, np.floating):
        raise InvalidInput(
            f"{name} is of {vectors.dtype}: give vectors of floats; quantised ones are compared as "
            "their format says, such as binary ones by their Hamming distance"
        )
    return vectors.astype(np.float32, copy=False)


def _ranges(vectors: npt.NDArray[Any]) -> FloatArray:
    finite = vectors[np.isfinite(vectors).all(axis=1)]  # failed texts have no say in the ranges
    if not len(finite):
        return np.zeros((2, vectors.shape[1]), dtype=np.float32)
    return np.stack([finite.min(axis=0), finite.max(axis=0)])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Embeddings(CallResult):
    """The result of a call. Row *i* of everything belongs to text *i*.

    Rows of texts with an error are NaN, or zero in integer types.
    """

    rows: npt.NDArray[Any] = field(repr=False)
    output: OutputSpec = field(repr=False)

    @cached_property
    def vectors(self) -> npt.NDArray[Any]:
        """The vectors, `[n, dim]` (`[n, ceil(dim / 8)]` for binary types)."""
        return self.output.finish(self.rows)

    def _facts(self) -> Mapping[str, object]:
        return {"dtype": self.output.dtype}
