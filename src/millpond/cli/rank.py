"""`millpond rank QUERY IN`: the texts of a file, ordered by their score for a query."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..config import EngineConfig
from .flags import ModelFlag, open_engine, read_flags, with_flags_of
from .text_flags import TextFlags

if TYPE_CHECKING:
    from ..scores import Ranked

__all__ = ["rank"]

DEFAULT_RERANKER = "cross-encoder/ms-marco-MiniLM-L6-v2"
CHUNK_ROWS = 1024
SCORE_WIDTH = 12


@with_flags_of(TextFlags, EngineConfig)
def rank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to order by.")],
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Texts: a file, or - for standard input.")
    ],
    *,
    top_n: Annotated[
        int | None, typer.Option("--top-n", "-n", min=1, help="Show the best N alone.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    model: ModelFlag = DEFAULT_RERANKER,
    activation: Annotated[
        str, typer.Option(help="What to apply to the logits; by default as the model.")
    ] = "auto",
    prompt: Annotated[
        str | None,
        typer.Option(help="Text in front of the query, or the instruction of a chat template."),
    ] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Name of a prompt saved with the model.")
    ] = None,
    truncate: Annotated[
        Literal["end", "start", "document", "error"] | None,
        typer.Option(help="What to cut of a pair that is too long; error stops instead."),
    ] = None,
    **flags: Any,
) -> None:
    """Order the texts of a file by their score for a query, the best first.

    With a reranker, or a multi-vector model such as ColBERT.

    \b
    Example:
      millpond rank "opening hours" notes.txt --top-n 5
    """
    path = None if str(source) == "-" else source
    formats = read_flags(TextFlags, flags).formats(
        path, Path("-"), output_format=None, output_column="score", vectors_only=True
    )
    chunks = formats.source(path).chunks(CHUNK_ROWS)
    texts = [text for chunk in chunks for text in chunk.texts]
    with open_engine(model, flags, kinds=("score", "multi_vector")) as engine:
        ranked = engine.rank(
            query,
            texts,
            top_n=top_n,
            activation=activation,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate=truncate,
        )
    for line in _json_lines(ranked, texts) if as_json else _table(ranked, texts):
        print(line)


def _json_lines(ranked: Sequence[Ranked], texts: Sequence[str]) -> Iterator[str]:
    import numpy as np
    import orjson

    for one in ranked:
        score = np.float32(one.score)  # which has fewer digits
        row = {"index": one.index, "score": score, "text": texts[one.index]}
        yield orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _table(ranked: Sequence[Ranked], texts: Sequence[str]) -> Iterator[str]:
    """A line for each: its score, its row in the file, and its text on one line.

    On a terminal a line is cut to its width.
    """
    import numpy as np

    index_width = len(str(len(texts)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for one in ranked:
        score = f"{np.float32(one.score)!s:<{SCORE_WIDTH}}"
        text = " ".join(texts[one.index].split())
        yield f"{score}  {one.index:>{index_width}}  {text}".rstrip()[:width]
