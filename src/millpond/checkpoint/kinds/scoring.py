"""What a checkpoint gives of a text or a pair: an embedding, a score, or classes.

Reads the labels and the activation as sentence-transformers 6's `CrossEncoder` does. It knows
the names of activations and computes none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import InvalidCheckpoint, UnsupportedModel
from ..files import read_json_object
from ..modules import Module

__all__ = ["ACTIVATIONS", "SCORES", "Kind", "ScoringSpec", "is_scoring", "read_scoring"]

logger = logging.getLogger(__name__)


Kind = Literal["embed", "score", "classify", "sparse", "multi_vector"]
"""What a checkpoint is for."""


SCORES = "scores"
"""What sentence-transformers calls the feature that the last module of a reranker gives."""


ACTIVATIONS: Mapping[str, str] = {
    "Identity": "none",
    "LogSigmoid": "log_sigmoid",
    "LogSoftmax": "log_softmax",
    "ReLU": "relu",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Softplus": "softplus",
    "Tanh": "tanh",
}
"""Classes of torch that a checkpoint may name, and what callers name them."""


_LABELS_BY_DEFAULT = 2  # of a configuration of transformers that names none


@dataclass(frozen=True, kw_only=True)
class ScoringSpec:
    """How logits become scores."""

    labels: tuple[str, ...]
    """Names of the logits, in their order."""
    activation: str
    """What `CrossEncoder.predict` applies to them, by a name of `ACTIVATIONS`."""
    class_activation: str
    """What makes probabilities of them: the activation, or the usual one for such labels."""
    per_token: bool = False
    """Whether each token has logits of its own."""

    @property
    def kind(self) -> Kind:
        """`score` for a single number, else `classify`."""
        return "score" if len(self.labels) == 1 and not self.per_token else "classify"


def is_scoring(modules: Sequence[Module]) -> bool:
    """Whether a route gives scores or classes and no embedding."""
    if modules[0].options.get("task", "feature-extraction") != "feature-extraction":
        return True
    return any(module.options.get("module_output_name") == SCORES for module in modules[1:])


def read_scoring(
    modules: Sequence[Module], saved: Mapping[str, Any], *, trust_remote_code: bool
) -> ScoringSpec | None:
    """How the logits of a route become scores; None for one that embeds.

    `saved` is its config_sentence_transformers.json. Raises `InvalidCheckpoint` for labels that
    contradict each other and `UnsupportedModel` for an activation that is not known.
    """
    if not is_scoring(modules):
        return None
    encoder = modules[0]
    config = read_json_object(encoder.path / "config.json")
    config |= encoder.options.get("config_kwargs") or {}
    labels = _labels(modules, config)
    named = _named_activation(saved, config, encoder.path, trust_remote_code=trust_remote_code)
    per_token = encoder.options.get("task") == "token-classification"
    activation = named or ("sigmoid" if len(labels) == 1 else "none")
    usual = _usual_class_activation(len(labels), config.get("problem_type"))
    return ScoringSpec(
        labels=labels,
        activation="none" if per_token and named is None else activation,
        class_activation="softmax" if per_token else _not_none(named) or usual,
        per_token=per_token,
    )


def _not_none(named: str | None) -> str | None:
    return None if named == "none" else named


def _usual_class_activation(labels: int, problem: object) -> str:
    """As the text-classification pipeline of transformers chooses it."""
    if problem == "regression":
        return "none"
    return "sigmoid" if labels == 1 or problem == "multi_label_classification" else "softmax"


def _labels(modules: Sequence[Module], config: Mapping[str, Any]) -> tuple[str, ...]:
    count = _label_count(modules, config)
    names = config.get("id2label") or {}
    if not isinstance(names, Mapping):
        raise InvalidCheckpoint(f"{modules[0].path / 'config.json'}: id2label is not an object")
    if len(names) != count:
        names = {}
    return tuple(str(names.get(str(index), f"LABEL_{index}")) for index in range(count))


def _label_count(modules: Sequence[Module], config: Mapping[str, Any]) -> int:
    if modules[0].options.get("task") == "text-generation":
        return 1
    scores = [m for m in modules[1:] if m.options.get("module_output_name") == SCORES]
    if scores:
        return int(scores[-1].options["out_features"])
    if config.get("num_labels") is not None:
        return int(config["num_labels"])
    return len(config.get("id2label") or ()) or _LABELS_BY_DEFAULT


def _named_activation(
    saved: Mapping[str, Any], config: Mapping[str, Any], folder: Path, *, trust_remote_code: bool
) -> str | None:
    """The activation that a checkpoint names; None where it names none that may be used."""
    of_config = config.get("sentence_transformers")
    of_config = of_config if isinstance(of_config, Mapping) else {}
    path = saved.get("activation_fn")
    if path is None or not _may_use(path, folder, trust_remote_code):
        path = of_config.get("activation_fn", config.get("sbert_ce_default_activation_function"))
        if path is None or not _may_use(path, folder, trust_remote_code):
            return None
    name = ACTIVATIONS.get(str(path).rpartition(".")[2])
    if name is None or not str(path).startswith("torch."):
        raise UnsupportedModel(
            f"{folder}: its scores go through {path}; only these of torch.nn are supported: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return name


def _may_use(path: object, folder: Path, trust_remote_code: bool) -> bool:
    if not isinstance(path, str):
        raise InvalidCheckpoint(f"{folder}: activation_fn is {path!r}, not a class path")
    if path.startswith("torch.") or trust_remote_code:
        return True
    logger.warning(
        "%s: activation_fn %s is not torch's own and trust_remote_code is off; the default for "
        "its number of labels is used instead, as sentence-transformers does",
        folder,
        path,
    )
    return False
