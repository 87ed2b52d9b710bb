"""What a checkpoint says that gives sparse vectors: SPLADE and similar models.

Reads the folders of sentence-transformers 6's `SparseEncoder`, and folders without modules.json
whose model is a masked language model, as it does: the maximum of log(1 + relu(logit)). It loads no
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UnsupportedModel
from ..files import whole_number
from ..module_config import transformer_config
from ..modules import Chain, Module
from ..routes import Route, Routes, read_task_routes, transformer_of_folder

__all__ = ["MODEL_TYPE", "SparseSpec", "masked_language_route", "read_sparse", "sparse_routes"]

MODEL_TYPE = "SparseEncoder"
BESIDE = "sparse"


@dataclass(frozen=True, kw_only=True)
class SparseSpec:
    """How a model gives sparse vectors."""

    max_active_dims: int | None = None
    """The dimensions of a vector that are not zero at most, unless a call says otherwise."""
    route: str | None = None
    """The route that all texts take to a sparse vector, of a model that gives dense ones too."""
    by_token: bool = False
    """Whether the model gives a weight for each token, of which a term's largest counts."""
    has_terms: bool = True
    """Whether dimensions are tokens of its vocabulary."""


def read_sparse(saved: Mapping[str, Any], routes: Sequence[Route], root: Path) -> SparseSpec:
    """From config_sentence_transformers.json, else from a SparseAutoEncoder."""
    latent = [m for route in routes for m in route.modules if m.kind == "SparseAutoEncoder"]
    path = root / "config_sentence_transformers.json"
    most = whole_number(saved, "max_active_dims", path, of="dimensions")
    if most is None and latent:
        most = latent[0].options["k"]
    return SparseSpec(max_active_dims=most, has_terms=not latent)


def sparse_routes(chain: Chain, root: Path) -> Routes:
    """The routes of a `SparseEncoder`, the route of every task, and that of all others.

    Raises `UnsupportedModel` or a subclass.
    """

    return read_task_routes(chain, root, lambda modules: _finished(modules, root))


def _finished(modules: tuple[Module, ...], root: Path) -> tuple[Module, ...]:
    """One route, checked to lead from text to a sparse vector."""
    kinds = [module.kind for module in modules if module.kind != "Dropout"]
    modules = tuple(module for module in modules if module.kind != "Dropout")
    if kinds == ["SparseStaticEmbedding"]:
        return modules
    is_masked = kinds[:1] == ["Transformer"] and modules[0].options["task"] == "fill-mask"
    if is_masked and kinds[1:] == ["SpladePooling"]:
        return modules
    is_pooled = kinds[:1] == ["Transformer"] and not is_masked and "Pooling" in kinds
    if is_pooled and "SparseAutoEncoder" not in kinds[:-1] and kinds[-1] == "SparseAutoEncoder":
        return modules
    raise UnsupportedModel(
        f"{root}: {' → '.join(module.class_name for module in modules) or 'nothing'} gives no "
        "sparse vector that is supported: a masked language model (fill-mask) with a "
        "SpladePooling, a SparseStaticEmbedding, or an embedder with a SparseAutoEncoder"
    )


def masked_language_route(root: Path) -> Route | None:
    """The route to sparse vectors of a folder without modules.json; None where there is none."""
    config = transformer_config(root)
    architectures = config.get("architectures") or ()
    if not any(str(name).endswith("ForMaskedLM") for name in architectures):
        return None
    pooling = Module.of("SpladePooling", root, strategy="max", activation="relu")
    return Route(name=BESIDE, modules=(transformer_of_folder(root, "fill-mask"), pooling))
