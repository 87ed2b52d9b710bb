"""`load_model`: one model on one device or several, and the tokenizers of its routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..errors import InvalidOption
from ..model.device import choose_device
from ..tokenization.tokenizer import TextTokenizer
from .base import ModelRunner
from .cpu_runner import CpuModelRunner, is_plain_thread
from .cuda_runner import CudaModelRunner
from .model_runner import TorchModelRunner
from .remote.task import Loaded, Rank

__all__ = ["LoadedModel", "load_in_child", "load_model", "on_plain_thread", "require_one_dtype"]

Result = TypeVar("Result")

RUNNERS: dict[str, type[TorchModelRunner]] = {"cpu": CpuModelRunner, "cuda": CudaModelRunner}
"""By the type of device; the others need no more than what these share."""


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
    runners = [on_plain_thread(partial(_load_runner, spec, one)) for one in configs]
    require_one_dtype(runners)
    return LoadedModel(runners, [pipeline.tokenizer for pipeline in runners[0].models])


def load_in_child(spec: ModelSpec, config: EngineConfig, *, rank: Rank) -> Loaded:
    """In a child: the model on its one device, and how its parent loads the tokenizers."""
    runner = _load_runner(spec, config)
    return Loaded(runner, [pipeline.tokenizer.load_again for pipeline in runner.models])


def _load_runner(spec: ModelSpec, config: EngineConfig) -> TorchModelRunner:
    (name,) = config.device_names  # of several, each has a configuration of its own
    device = choose_device(name)
    return RUNNERS.get(device.type, TorchModelRunner).load(spec, config, device)


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


def on_plain_thread(work: Callable[[], Result]) -> Result:
    """What `work` gives, computed on the calling thread if it is plain, or else on a new one.

    What a caller set for its own work is not to change a model that it loads, nor its vectors.
    """
    if is_plain_thread():
        return work()
    thread = ThreadPoolExecutor(1, thread_name_prefix="millpond-load")
    try:
        return thread.submit(work).result()
    finally:  # where the caller is interrupted, the interpreter's exit waits for it
        thread.shutdown(wait=False)
