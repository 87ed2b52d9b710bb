"""`millpond similarity "a" "b" …`: how alike texts are, as a small table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidOption
from .engine_flags import with_engine_flags
from .options import (
    DEFAULT_MODEL,
    DimensionsOption,
    JsonOption,
    ModelOption,
    PromptNameOption,
    PromptOption,
    TaskOption,
    open_engine,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float32]

__all__ = ["similarity"]

SHOWN_CHARACTERS = 60


@with_engine_flags()
def similarity(
    texts: Annotated[list[str], typer.Argument(help="Two texts or more.")],
    *,
    model: ModelOption = DEFAULT_MODEL,
    task: TaskOption = None,
    prompt: PromptOption = None,
    prompt_name: PromptNameOption = None,
    dimensions: DimensionsOption = None,
    as_json: JsonOption = False,
    **engine_options: Any,
) -> None:
    """Show how alike texts are, by the similarity the model was made for (cosine as a rule).

    \b
    Example:
      millpond similarity "when can I buy bread?" "The bakery opens at six." "It may rain."
    """
    if len(texts) < 2:
        raise InvalidOption("one text has nothing to be compared with: give two or more")
    with open_engine(model, engine_options) as engine:
        vectors = engine.embed(
            texts, task=task, prompt=prompt, prompt_name=prompt_name, dimensions=dimensions
        )
        measure = engine.info().model.similarity_fn_name or "cosine"
    scores = _scores(vectors, measure)
    if as_json:
        answer = {
            "model": model,
            "similarity": measure,
            "texts": texts,
            "scores": [[round(float(score), 6) for score in row] for row in scores],
        }
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        print(_table(texts, scores))


def _scores(vectors: Matrix, measure: str) -> Matrix:
    """Every text with every text, `[n, n]`; a distance is negative, so that more is more alike."""
    import numpy as np

    if measure in ("euclidean", "manhattan"):
        order = 2 if measure == "euclidean" else 1
        between = vectors[:, None, :] - vectors[None, :, :]
        distances: Matrix = -np.linalg.norm(between, ord=order, axis=-1)
        return distances
    if measure == "cosine":
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors @ vectors.T


def _table(texts: Sequence[str], scores: Matrix) -> str:
    """A row and a numbered column for each text."""
    head = "".join(f"{number:>9}" for number in range(1, len(texts) + 1))
    rows = [
        f"{number:>3}" + "".join(f"{score:9.4f}" for score in row) + f"  {_shown(text)}"
        for number, (text, row) in enumerate(zip(texts, scores, strict=True), start=1)
    ]
    return "\n".join([f"   {head}", *rows])


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
