"""The process of one peer: it loads the peer and does what it is told, a line of JSON at a time.

    python -m benchmarks.peers.worker LIBRARY.py "millpond auto" MODEL_FOLDER TEXTS.json

A request is `{"figure": "ingest", "texts": "passages", …}`, where strings that name a list in the
file of texts stand for it. The answer is what the function of `figures.py` returned, or
`{"error": …}`. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from . import figures, peer
from .peer import Embedder

ACTIONS = {
    "ingest": figures.ingest,
    "lone_query": figures.lone_query,
    "callers": figures.callers,
    "during_ingestion": figures.during_ingestion,
    "mixed": figures.mixed,
    "index": figures.index,
}


def obey(embedder: Embedder, texts: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """One answer. Raises what the peer raises."""
    figure = request.pop("figure")
    if figure == "memory":
        return figures.memory()
    if figure == "versions":
        return figures.versions()
    if figure == "vectors":
        vectors = embedder.embed(texts[request["texts"]])
        return {"vectors": [[float(number) for number in row] for row in vectors]}
    if figure == "closest":
        found = (texts[request["texts"]], texts[request["queries"]])
        return {"closest": embedder.closest(*found, request["count"])}
    arguments = {
        name: texts[value] if isinstance(value, str) else value for name, value in request.items()
    }
    return ACTIONS[figure](embedder, **arguments)


def answers(embedder: Embedder, texts_file: Path, requests: TextIO, replies: TextIO) -> None:
    """One line out for every line in."""
    texts: dict[str, Any] = {}
    for line in requests:
        texts = texts or json.loads(texts_file.read_text())  # the first vector does not wait for it
        try:
            reply = obey(embedder, texts, json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(_cause(error)).__name__}: {_cause(error)}"}
        print(json.dumps(reply), file=replies, flush=True)


def _cause(error: Exception) -> Exception:
    """The first of those that a group of tasks ended with."""
    return _cause(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def main() -> None:
    file, name, model, texts = sys.argv[1:]
    # Libraries print; the answers have the real standard output to themselves.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    chosen = next(entry for entry in peer.read(Path(file)) if entry.name == name)
    embedder = chosen.load(Path(model))
    embedder.query("the first vector")
    print(json.dumps({"ready": True}), file=replies, flush=True)
    answers(embedder, Path(texts), sys.stdin, replies)
    embedder.close()


if __name__ == "__main__":
    main()
