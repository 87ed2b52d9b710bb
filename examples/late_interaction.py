"""Rank texts by late interaction: every token of the query finds its best token of a text.

    python examples/late_interaction.py "when can I buy bread?"
    python examples/late_interaction.py --model lightonai/GTE-ModernColBERT-v1 "where is bread?"

Without a model it makes one of all-MiniLM-L6-v2, whose token vectors were not trained for it, so
that it runs without a download.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import millpond
from millpond import Engine

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = [
    "The bakery opens at six in the morning, and sells what it bakes until noon.",
    "Bread is made of flour, water and salt.",
    "The mill stands beside a pond; its wheel turns as long as there is water.",
    "On Sundays the shop is closed, but you can buy rolls at the station.",
    "It may rain in the afternoon.",
]
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
AFTER = {  # a module's folder, with its type and options
    "1_MultiVectorMask": (
        "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
        {"skiplist_words": [".", ",", ";", "?", "!"]},
    ),
    "2_Normalize": (
        "sentence_transformers.base.modules.normalize.Normalize",
        {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"},
    ),
}


def as_multi_vector(embedder: str, folder: Path) -> Path:
    """A multi-vector model of an embedder's transformer, in sentence-transformers' format."""
    with Engine(embedder) as engine:
        source = engine.info().model.routes[0].encoder.path
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    for path, (_, options) in AFTER.items():
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(options))
    types = {"": TRANSFORMER, **{path: kind for path, (kind, _) in AFTER.items()}}
    modules = [{"path": path, "type": kind} for path, kind in types.items()]
    settings = {"model_type": "MultiVectorEncoder"}
    for name, value in (("modules", modules), ("config_sentence_transformers", settings)):
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def show(model: str | Path, query: str) -> None:
    """Rank the texts, and say the same in two steps, as an index does it."""
    with Engine(model) as engine:
        for one in engine.rank(query, TEXTS, top_n=3):
            print(f"{one.score:6.2f}  {TEXTS[one.index]}")

        documents = engine.embed_tokens(TEXTS, task="document")  # once, to be kept
        small = engine.embed_tokens(TEXTS, task="document", pool_factor=2)
        vectors = engine.embed_tokens(query, task="query")  # float32 [tokens, dim]
        scores = millpond.maxsim(vectors, documents)  # float32 [5]
        print(f"best by maxsim: {TEXTS[int(scores.argmax())]}")
        best = TEXTS[int(millpond.maxsim(vectors, small).argmax())]
        print(f"with {len(small.vectors)} vectors for {len(documents.vectors)}: {best}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("query")
    parser.add_argument("--model", help="A multi-vector model: a folder, or a name on the hub.")
    options = parser.parse_args(arguments)
    if options.model is not None:
        show(options.model, options.query)
        return
    with tempfile.TemporaryDirectory() as folder:
        show(as_multi_vector(EMBEDDER, Path(folder)), options.query)


if __name__ == "__main__":
    main()
