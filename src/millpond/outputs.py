"""What every kind of result of a call has in common, and what the engine asks of each kind.

The engine knows rows: one for each text, as the model gives them. An `Output` says what becomes of
them. Pure numpy; it knows nothing of models, devices or queues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import InvalidInput, TextFailed, TextsFailed

__all__ = ["CallResult", "Output", "Timings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Where the time of a call went, in seconds."""

    queue_s: float
    """From the call until its first text ran, tokenising included."""
    tokenize_s: float
    forward_s: float
    """Sum over the forward passes that held a text of the call."""
    total_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
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

    def __len__(self) -> int:
        return len(self.token_counts)


class Output(Protocol):
    """What a call makes of the rows that the model gives for its texts."""

    @property
    def overflow_advice(self) -> str:
        """What to say of a text whose row is finite as the model gave it, and not any more."""

    def allocate(self, texts: int) -> npt.NDArray[Any]:
        """Room for the rows of a call, `[texts, …]`; those of failed texts stay as they are."""

    def rows(self, computed: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Rows of the model `[n, dimension]` as rows for `allocate`'s array."""

    def result(self, rows: npt.NDArray[Any], **of_call: Any) -> CallResult:
        """The result of a call with these rows; `of_call` are the fields of `CallResult`."""
