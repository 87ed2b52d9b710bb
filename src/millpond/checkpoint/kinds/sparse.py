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

from ...errors import InvalidCheckpoint, UnsupportedModel
from ..module_config import transformer_config, transformer_options
from ..modules import Chain, Module, chain_for
from ..routes import Route, Routes, read_task_routes

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
    most = saved.get("max_active_dims")
    if most is None and latent:
        most = latent[0].options["k"]
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise InvalidCheckpoint(
            f"{root / 'config_sentence_transformers.json'}: max_active_dims is {most!r}, not a "
            "number of dimensions"
        )
    return SparseSpec(max_active_dims=most, has_terms=not latent)


def sparse_routes(chain: Chain, root: Path) -> Routes:
    """The routes of a `SparseEncoder`, the route of every task, and that of all others.

    Raises `UnsupportedModel` or a subclass.
    """

    def finished(task: str | None) -> tuple[tuple[str, ...], tuple[Module, ...]]:
        names, modules = chain_for(chain, task)
        return names, _finished(modules, root)

    return read_task_routes(chain, root, finished)


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
    path = root / "config.json"
    options = transformer_options({"transformer_task": "fill-mask"}, path=path, whole=True)
    transformer = Module(kind="Transformer", path=root, options=options, class_name="Transformer")
    pooling = Module(
        kind="SpladePooling",
        path=root,
        options={"strategy": "max", "activation": "relu"},
        class_name="SpladePooling",
    )
    return Route(name=BESIDE, modules=(transformer, pooling))
