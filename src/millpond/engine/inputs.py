"""Some texts of a job to a `TokenChunk`, and which of them cannot be accepted.

What the runner's tokenizer does it knows nothing of, but that it names the first bad text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, InvalidInput, MillpondError
from ..runner.base import ModelRunner
from ..scheduler.request import Request
from ..scheduler.token_chunk import TokenChunk

__all__ = ["Tokenized", "tokenize"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What became of texts of a job."""

    chunk: TokenChunk | None
    """Those that were accepted; None if there are none."""
    refused: Mapping[int, InvalidInput]
    """The errors of the others, by their index in the job."""


def tokenize(runner: ModelRunner, job: Request, rows: Rows) -> Tokenized:
    """Tokenise texts of a job. Raises `EngineError`, and for a strict job `InvalidInput`."""
    try:
        return _tokenized(runner, job, rows)
    except MillpondError:
        raise
    except Exception as error:  # nobody foresaw it: this call fails, the engine goes on
        raise EngineError(f"the tokenizer failed with {type(error).__name__}: {error}") from error


def _tokenized(runner: ModelRunner, job: Request, rows: Rows) -> Tokenized:
    try:
        return Tokenized(_chunk(runner, job, rows), {})
    except InvalidInput as error:
        if job.strict:
            raise
        refused = _refused(runner, job, rows, error)
    good = rows[~np.isin(rows, list(refused))]
    return Tokenized(_chunk(runner, job, good) if len(good) else None, refused)


def _refused(
    runner: ModelRunner, job: Request, rows: Rows, error: InvalidInput
) -> dict[int, InvalidInput]:
    """The errors of all bad texts, found by bisection, where one is known."""
    refused = {error.index: error}
    others = rows[rows != error.index]
    for part in np.array_split(others, 2):
        if len(part):
            try:
                runner.tokenize(job, part)
            except InvalidInput as another:
                refused |= _refused(runner, job, part, another)
    return refused


def _chunk(runner: ModelRunner, job: Request, rows: Rows) -> TokenChunk:
    chunk = runner.tokenize(job, rows)
    if len(chunk) != len(rows):  # the job would wait for the rest for ever
        raise TypeError(f"it gave the tokens of {len(chunk)} texts for {len(rows)}")
    return chunk
