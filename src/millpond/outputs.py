"""What every kind of result of a call has in common, and what the engine asks of each kind.

The engine knows rows: one for each text, as the model gives them. An `Output` says what becomes of
them. Pure numpy; it knows nothing of models, devices or queues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import InvalidDimensions, InvalidInput, TextFailed, TextsFailed

__all__ = [
    "CallResult",
    "Output",
    "RaggedOutput",
    "RaggedRows",
    "Rows",
    "Timings",
    "require_dimensions",
    "unit_length",
]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RaggedRows:
    """Several rows for each text: text *i* has `values[offsets[i]:offsets[i + 1]]`.

    It has the length and the slices of an array with one row a text.
    """

    values: npt.NDArray[np.float32]
    """`[total, width]`."""
    offsets: npt.NDArray[np.int64]
    """`[texts + 1]`, from 0."""

    @classmethod
    def of(cls, texts: Sequence[npt.NDArray[np.float32]], width: int) -> RaggedRows:
        """Of the rows of each text, `[any, width]`."""
        lengths = [len(rows) for rows in texts]
        values = np.concatenate(texts) if texts else np.empty((0, width), dtype=np.float32)
        return cls(values, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return int(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        return iter(np.split(self.values, self.offsets[1:-1])[: len(self)])

    def __getitem__(self, which: Any) -> Any:
        """The rows of one text; or those of a slice, of places or of a mask, ragged."""
        if isinstance(which, int | np.integer):
            return self.values[self.offsets[which] : self.offsets[which + 1]]
        return self.at(np.arange(len(self))[which])

    def at(self, places: npt.NDArray[np.int64]) -> RaggedRows:
        """The rows of the texts at these places, in their order."""
        return RaggedRows.of([self[place] for place in places], self.width)


Rows = npt.NDArray[Any] | RaggedRows
"""What a model gives for texts, or what becomes of it: a row for each, or several."""


def require_dimensions(wanted: object, dimension: int) -> None:
    """Raise `InvalidDimensions` for more than the model has; None is all."""
    if wanted is None:
        return
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer):
        raise InvalidDimensions(f"dimensions={wanted!r}: it must be a whole number")
    if not 1 <= wanted <= dimension:
        raise InvalidDimensions(
            f"dimensions={wanted}: the model has {dimension}; choose between 1 and that"
        )


def unit_length(vectors: FloatArray) -> FloatArray:
    """Vectors `[n, dimension]` scaled to unit length, float32; zero stays zero."""
    # The floor is the one of torch.nn.functional.normalize.
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    unit: FloatArray = (vectors / norms).astype(np.float32, copy=False)
    return unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Where the time of a call went, in seconds."""

    queue_s: float
    """From the call until its first text ran, tokenising included."""
    tokenize_s: float
    forward_s: float
    """Sum over the forward passes that held a text of the call."""
    total_s: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CallResult:
    """The result of a call. Row *i* of everything belongs to text *i*, or to pair *i*."""

    token_counts: npt.NDArray[np.int32]
    """Tokens computed per text, special tokens and prompt included, `[n]`."""
    truncated: npt.NDArray[np.bool_]
    """Which texts were longer than the model reads and lost a part, `[n]`."""
    timings: Timings
    errors: Mapping[int, TextFailed | InvalidInput] = field(default_factory=dict)
    """By index, the texts that were not accepted (`InvalidInput`) and those that failed
    (`TextFailed`)."""

    def raise_for_errors(self) -> None:
        """Raise the error of the first text that was not accepted, if there is one.

        Else the text's own if one failed, and `TextsFailed` if several did.
        """
        failed: dict[int, TextFailed] = {}
        for row, error in sorted(self.errors.items()):
            if isinstance(error, InvalidInput):
                raise error.at(row) from error.__cause__  # each time another: it may be raised anew
            failed[row] = error
        if len(failed) > 1:
            raise TextsFailed(failed)
        for row, error in failed.items():
            raise error.at(row) from error.__cause__

    def of_good_texts(self, rows: Any) -> Any:
        """Of `rows`, a row for each text, those of the texts without an error."""
        if not self.errors:
            return rows
        good = np.ones(len(self), dtype=np.bool_)
        good[list(self.errors)] = False
        return rows[good]

    def __len__(self) -> int:
        return len(self.token_counts)

    def _facts(self) -> Mapping[str, object]:
        """What `repr` says of it beside counts."""
        return {}

    def __repr__(self) -> str:
        facts = {
            "texts": len(self),
            **self._facts(),
            "tokens": int(self.token_counts.sum()),
            "truncated": int(self.truncated.sum()),
            "failed": len(self.errors),
        }
        said = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        return f"{type(self).__name__}({said})"


class Output(Protocol):
    """What a call makes of the rows that the model gives for its texts."""

    @property
    def overflow_advice(self) -> str:
        """What to say of a text whose row is finite as the model gave it, and not any more."""

    def allocate(self, texts: int) -> Any:
        """Room for the rows of a call: what `store` takes. Those of failed texts stay empty."""

    def rows(self, computed: Any) -> Any:
        """What becomes of `Rows` of the model, `dimension` numbers wide."""

    def store(self, room: Any, texts: npt.NDArray[np.int64], rows: Any) -> None:
        """Put rows of these texts into the room of their call."""

    def result(self, rows: Any, **of_call: Any) -> CallResult:
        """The result of a call with these rows; `of_call` are the fields of `CallResult`."""


class RaggedOutput:
    """The part of an `Output` that keeps several rows of each text, as an array of its own."""

    def allocate(self, texts: int) -> list[Any]:
        """A place for the rows of each text, empty for those that will fail."""
        return [None] * texts

    def store(self, room: list[Any], texts: npt.NDArray[np.int64], rows: RaggedRows) -> None:
        """Put rows of these texts into their places, as copies that hold no others."""
        for text, each in zip(texts.tolist(), rows, strict=True):
            room[text] = each.copy()
