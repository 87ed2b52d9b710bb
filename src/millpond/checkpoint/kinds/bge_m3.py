"""bge-m3: a dense, a sparse and a vector for each token, of one pass.

Its two other heads are files beside the checkpoint, `colbert_linear.pt` and `sparse_linear.pt`, as
FlagEmbedding's `BGEM3FlagModel` saves and reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..files import has_file
from ..modules import Chain, Module
from ..routes import Route, pooling_module, transformer_of_folder

__all__ = [
    "ALL",
    "COLBERT",
    "DENSE",
    "SPARSE",
    "SPARSE_FILE",
    "TOKENS",
    "is_bge_m3",
    "m3_chain",
    "m3_routes",
]

COLBERT, SPARSE_FILE = "colbert_linear.pt", "sparse_linear.pt"
DENSE, SPARSE, TOKENS, ALL = "dense", "sparse", "tokens", "all"


def is_bge_m3(root: Path) -> bool:
    """Whether the files of both heads are there."""
    return has_file(root / COLBERT) and has_file(root / SPARSE_FILE)


def m3_chain(root: Path) -> Chain:
    """What a folder without modules.json is run as: FlagEmbedding's first token, scaled."""
    vector = "sentence_embedding"
    return (
        transformer_of_folder(root),
        pooling_module(root, ("cls",)),
        Module.of("Normalize", root, module_input_name=vector, module_output_name=vector),
    )


def m3_routes(dense: Route, root: Path) -> Sequence[Route]:
    """Beside the route to a dense vector those to the others alone, and to all three."""

    def route(name: str, *gives: str, steps: Sequence[Module] = ()) -> Route:
        heads = Module(
            kind="M3Heads", path=root, options={"gives": gives}, class_name="BGEM3FlagModel"
        )
        return Route(name=name, modules=(dense.encoder, *steps, heads))

    return (
        route(TOKENS, TOKENS),
        route(SPARSE, SPARSE),
        route(ALL, DENSE, SPARSE, TOKENS, steps=dense.head),
    )
