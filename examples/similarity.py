"""Print how similar texts are, by the similarity function that the checkpoint names.

    python examples/similarity.py "when can I buy bread?" "The bakery opens at six." "It may rain."
    python examples/similarity.py --model intfloat/e5-small-v2 --task query "one text" "another"

Distances are negative, so that more is more similar.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from millpond import Engine, similarity

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SHOWN_CHARACTERS = 60
Matrix = npt.NDArray[np.float32]


def scores(vectors: Matrix, function: str) -> Matrix:
    """Every text with every text: `[n, dim]` to `[n, n]`."""
    if function in ("euclidean", "manhattan"):
        order = 2 if function == "euclidean" else 1
        distances: Matrix = np.linalg.norm(vectors[:, None] - vectors[None], ord=order, axis=-1)
        return -distances
    return similarity(vectors) if function == "cosine" else vectors @ vectors.T


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--task", choices=("query", "document"))
    options = parser.parse_args(arguments)
    with Engine(options.model) as engine:
        vectors = engine.embed(options.texts, task=options.task)
        function = engine.info().model.similarity_fn_name or "cosine"
    print("   " + "".join(f"{number:9}" for number in range(1, len(options.texts) + 1)))
    for number, row in enumerate(scores(vectors, function), start=1):
        text = " ".join(options.texts[number - 1].split())[:SHOWN_CHARACTERS]
        print(f"{number:3}" + "".join(f"{score:9.4f}" for score in row) + f"  {text}")


if __name__ == "__main__":
    main()
