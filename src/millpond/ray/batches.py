"""What an actor does with a table of rows: `EmbedBatch`, `ScoreBatch` and `RankBatch`.

Each is made once in an actor and holds an engine; Ray calls it from several threads. A table comes
back with the new columns, and rows that have no result with an error, or without those rows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from ..arrow import error_texts, numbers_column, sparse_column, values_of, vectors_column
from ..config import EngineOptions
from ..embeddings import Embeddings
from ..engine.calls.scoring import ScoreOptions
from ..engine.calls.sparse import SparseOptions
from ..engine.engine import Engine
from ..engine.params.embed import CallOptions
from ..errors import (
    EngineFailed,
    InvalidInput,
    InvalidOption,
    InvalidText,
    MillpondError,
    TextFailed,
)
from ..outputs import CallResult
from ..scores import Scores
from ..sparse.embeddings import SparseEmbeddings

__all__ = [
    "Columns",
    "Computed",
    "EmbedBatch",
    "EngineBatch",
    "OnError",
    "RankBatch",
    "ScoreBatch",
    "SparseBatch",
]

OnError = Literal["report", "drop", "raise"]
RANKED = pa.list_(pa.struct([("index", pa.int64()), ("score", pa.float32())]))
ENGINE_FAILED = 70  # EX_SOFTWARE of sysexits.h


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns that are read and written. Raises `InvalidOption`."""

    read: tuple[str, ...]
    output: str
    error: str
    on_error: OnError

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            choices = ", ".join(get_args(OnError))
            raise InvalidOption(f"on_error={self.on_error!r}: choose one of {choices}")

    @property
    def written(self) -> tuple[str, ...]:
        """The names of the new columns."""
        return (self.output, self.error) if self.on_error == "report" else (self.output,)

    def require_in(self, names: Sequence[str]) -> None:
        """Raise `InvalidOption` where one that is read is missing, or one written is there."""
        for name in self.read:
            if name not in names:
                raise InvalidOption(
                    f"the dataset has no column {name!r}, only {', '.join(map(repr, names))}"
                )
        for name in self.written:
            if name in names or self.written.count(name) > 1:
                raise InvalidOption(
                    f"the dataset would have two columns {name!r}: give the new one another name"
                )


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What an engine made of a table."""

    values: Any
    """The new column."""
    errors: Mapping[int, Exception]
    """By row, why it has no value."""
    truncated: int
    """Texts or pairs that were longer than the model reads."""

    @classmethod
    def of(cls, result: CallResult, values: Any, errors: Mapping[int, Exception]) -> Computed:
        """Of the engine's result, and what it is by rows."""
        return cls(values=values, errors=errors, truncated=int(result.truncated.sum()))


class EngineBatch(ABC):
    """An engine and the columns it reads and writes.

    What is wrong with the model or an option is raised by the first call, since Ray gives what a
    call raises to the caller, and of what a constructor raises only the text.
    """

    def __init__(
        self,
        model: str,
        engine_options: EngineOptions,
        columns: Columns,
        options: Mapping[str, Any],
    ) -> None:
        self._columns = columns
        self._options = options
        self._finished = False  # whether a batch is; set by any thread, and never unset
        self._failure: MillpondError | None = None
        try:
            self._engine = Engine(model, **engine_options)
            self._prepare()
        except MillpondError as error:
            self._failure = error

    def __call__(self, table: Any) -> Any:
        """The table with the new columns. Raises as `compute`."""
        return self.with_columns(table, self.compute(table))

    def compute(self, table: Any) -> Computed:
        """The new column of a table.

        Raises what `Engine` raises for a model or an option, `InvalidOption` for the columns and,
        with `on_error="raise"`, the error of the first row that has one. An engine that fails after
        it has finished tables ends the process: Ray starts another, and gives it the same tables.
        """
        self.require_model()
        self._columns.require_in(table.column_names)
        try:
            computed = self._compute(table)
        except EngineFailed:
            if self._finished:
                os._exit(ENGINE_FAILED)
            raise
        self._finished = True
        if computed.errors and self._columns.on_error == "raise":
            row = min(computed.errors)
            raise _placed(computed.errors[row], row)
        return computed

    def require_model(self) -> None:
        """Raise what is wrong with the model or an option."""
        if self._failure is not None:
            raise self._failure

    def with_columns(self, table: Any, computed: Computed) -> Any:
        """The table with what was computed, and with the errors or without their rows."""
        rows = table.num_rows
        table = table.append_column(self._columns.output, computed.values)
        if self._columns.on_error == "report":
            return table.append_column(self._columns.error, error_texts(computed.errors, rows))
        if computed.errors:
            table = table.filter(pa.array([row not in computed.errors for row in range(rows)]))
        return table

    def _prepare(self) -> None:
        """Raise for a model or an option that cannot be meant, before there are any rows."""
        self._result([])

    @abstractmethod
    def _result(self, inputs: list[Any]) -> Any:
        """What the engine gives of texts or pairs, waited for."""

    @abstractmethod
    def _compute(self, table: Any) -> Computed:
        """The new column, with errors in the place of rows that have none."""

    def _of_texts(self, table: Any, column: Callable[..., Any]) -> Computed:
        """The vectors of a text column, which `column` makes one of."""
        result = self._result(values_of(table.column(self._columns.read[0])))
        return Computed.of(result, column(result.vectors, result.errors), result.errors)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(columns={self._columns!r}, failed={self._failure!r})"


class EmbedBatch(EngineBatch):
    """The vectors of a text column; `options` are `CallOptions`."""

    _options: CallOptions

    def _result(self, inputs: list[Any]) -> Embeddings:
        return self._engine.submit(inputs, **self._options).result()

    def _compute(self, table: Any) -> Computed:
        return self._of_texts(table, vectors_column)


class SparseBatch(EngineBatch):
    """The sparse vectors of a text column; `options` are `SparseOptions`."""

    _options: SparseOptions

    def _result(self, inputs: list[Any]) -> SparseEmbeddings:
        return self._engine.submit_sparse(inputs, **self._options).result()

    def _compute(self, table: Any) -> Computed:
        return self._of_texts(table, sparse_column)


class _PairsBatch(EngineBatch):
    """What is computed of pairs; `options` are `ScoreOptions`."""

    _options: ScoreOptions

    def _result(self, inputs: list[Any]) -> Scores:
        return self._engine.submit_score(inputs, **self._options).result()


class ScoreBatch(_PairsBatch):
    """The scores of pairs: a query column and a document column."""

    def _compute(self, table: Any) -> Computed:
        queries, documents = (values_of(table.column(name)) for name in self._columns.read)
        errors: dict[int, Exception] = {}
        rows: list[int] = []
        pairs: list[tuple[str, str]] = []
        for row, (query, document) in enumerate(zip(queries, documents, strict=True)):
            wrong = _not_string("query", query) or _not_string("document", document)
            if wrong is not None:
                errors[row] = InvalidText(wrong, index=row)
                continue
            rows.append(row)
            pairs.append((query, document))
        result = self._result(pairs)
        errors |= {rows[place]: error for place, error in result.errors.items()}
        labels = result.rows.shape[1]
        scores = np.full((len(queries), labels), np.nan, dtype=np.float32)
        scores[rows] = result.rows
        one = labels == 1
        values = numbers_column(scores[:, 0], errors) if one else vectors_column(scores, errors)
        return Computed.of(result, values, errors)


class RankBatch(_PairsBatch):
    """The documents of a list column, ranked by a query column."""

    def __init__(self, *given: Any, top_n: int | None = None) -> None:
        self._top_n = top_n
        super().__init__(*given)

    def _prepare(self) -> None:
        self._engine.rank("", [], **self._options)  # which a model of several labels refuses

    def _compute(self, table: Any) -> Computed:
        queries, lists = (values_of(table.column(name)) for name in self._columns.read)
        errors: dict[int, Exception] = {}
        pairs: list[tuple[str, str]] = []
        spans: list[slice] = []  # of each row's pairs
        for row, (query, documents) in enumerate(zip(queries, lists, strict=True)):
            wrong = _not_string("query", query) or _not_strings(documents)
            if wrong is not None:
                errors[row] = InvalidText(wrong, index=row)
            start = len(pairs)
            pairs += [(query, document) for document in (documents if wrong is None else ())]
            spans.append(slice(start, len(pairs)))
        result = self._result(pairs)
        for row, span in enumerate(spans):
            failed = [place for place in result.errors if span.start <= place < span.stop]
            if failed:
                errors[row] = result.errors[min(failed)]
        ranked = [
            None if row in errors else self._best(result.rows[span, 0])
            for row, span in enumerate(spans)
        ]
        return Computed.of(result, pa.array(ranked, RANKED), errors)

    def _best(self, scores: Any) -> list[dict[str, Any]]:
        order = np.argsort(-scores, kind="stable")[: self._top_n]  # as `Scores.ranked`
        return [{"index": int(place), "score": float(scores[place])} for place in order]


def _placed(error: Exception, row: int) -> Exception:
    return error.at(row) if isinstance(error, InvalidInput | TextFailed) else error


def _not_string(what: str, value: Any) -> str | None:
    return None if isinstance(value, str) else f"the {what} is {type(value).__name__}, not a string"


def _not_strings(documents: Any) -> str | None:
    if not isinstance(documents, list):
        return f"the documents are {type(documents).__name__}, not a list of strings"
    wrong = (_not_string("document", document) for document in documents)
    return next(filter(None, wrong), None)
