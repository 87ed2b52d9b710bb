"""`load_model`: one model on one device or several, and the tokenizers of its routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..errors import InvalidOption
from ..tokenization.tokenizer import TextTokenizer
from .base import ModelRunner
from .model_runner import TorchModelRunner

__all__ = ["LoadedModel", "load_model", "require_one_dtype"]


@dataclass(frozen=True)
class LoadedModel:
    """What runs a model: a runner for each device, and a tokenizer for each route."""

    runners: Sequence[ModelRunner]
    tokenizers: Sequence[TextTokenizer]


def load_model(spec: ModelSpec, config: EngineConfig) -> LoadedModel:
    """Load a model onto its device or devices. Raises `ModelError` and `InvalidOption`."""
    names = _device_names(config)
    changes: dict[str, Any] = {}
    if len(names) > 1:
        changes["prefix_cache"] = "off"  # the scheduler does not know who will run a batch
    configs = [replace(config, device=name, **changes) for name in names]
    runners = [TorchModelRunner.load(spec, one) for one in configs]
    require_one_dtype(runners)
    return LoadedModel(runners, [pipeline.tokenizer for pipeline in runners[0].models])


def require_one_dtype(runners: Sequence[ModelRunner]) -> None:
    """Raise `InvalidOption` where devices chose different precisions."""
    precisions = sorted({runner.dtype_name for runner in runners})
    if len(precisions) > 1:
        raise InvalidOption(
            f"the devices run in {' and '.join(precisions)}, and a text's vector would depend "
            "on where it ran; choose a dtype that all of them have"
        )


def _device_names(config: EngineConfig) -> Sequence[str]:
    count = torch.cuda.device_count() if config.device == "cuda" else 1
    return [f"cuda:{index}" for index in range(count)] if count > 1 else config.device_names
