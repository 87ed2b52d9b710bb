"""`load_model`: one model, in this process or on several devices, and its routes' tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..errors import InvalidOption
from ..model.device import choose_device
from ..model.split.ranks import RankGroup
from ..tokenization.tokenizer import TextTokenizer
from .base import ModelRunner
from .cpu.runner import CpuModelRunner, is_plain_thread
from .cuda.runner import CudaModelRunner
from .model_runner import TorchModelRunner
from .remote.process import can_start_children
from .remote.runner import RemoteRunner
from .remote.task import Loaded, Rank
from .replicas import replica_devices, replica_tasks
from .split import RankRunner, load_ranks, rank_devices

__all__ = ["LoadedModel", "load_in_child", "load_model", "on_plain_thread", "require_alike"]

Result = TypeVar("Result")

RUNNERS: dict[str, type[TorchModelRunner]] = {"cpu": CpuModelRunner, "cuda": CudaModelRunner}
"""By the type of device; the others need no more than what these share."""


@dataclass(frozen=True)
class LoadedModel:
    """What runs a model: a runner for each replica, and a tokenizer for each route."""

    runners: Sequence[ModelRunner]
    tokenizers: Sequence[TextTokenizer]
    renew: Callable[[], Sequence[ModelRunner]] | None = None
    """Loads them once more for a forked process, which cannot use those of its parent."""


def load_model(spec: ModelSpec, config: EngineConfig) -> LoadedModel:
    """Load a model onto its device or devices. Raises `ModelError` and `InvalidOption`.

    One copy on one device runs in this process where `replicas` says nothing else; several run in
    a process each, and so do the parts of one that is split.
    """
    names = _device_names(config)
    loader = f"{__name__}:{load_in_child.__name__}"
    if config.tensor_parallel_size > 1:
        ranks = rank_devices(spec, config, [choose_device(name) for name in names])
        return _load_in_children(partial(load_ranks, loader, spec, config, ranks))
    if config.replicas is None and (len(names) == 1 or not can_start_children()):
        return _load_here(spec, config, names)
    placed = replica_devices([choose_device(name) for name in names], config.replicas)
    tasks = [[task] for task in replica_tasks(loader, spec, config, placed)]
    return _load_in_children(partial(RemoteRunner.load_several, tasks))


def _load_here(spec: ModelSpec, config: EngineConfig, names: Sequence[str]) -> LoadedModel:
    configs = [replace(config, device=name) for name in names]
    runners = [on_plain_thread(partial(_load_runner, spec, one)) for one in configs]
    require_alike(runners)
    return LoadedModel(runners, [pipeline.tokenizer for pipeline in runners[0].models])


def _load_in_children(renew: Callable[[], list[RemoteRunner]]) -> LoadedModel:
    runners = renew()
    require_alike(runners)
    return LoadedModel(runners, [load() for load in runners[0].facts.extra], renew)


def load_in_child(spec: ModelSpec, config: EngineConfig, sharers: int, *, rank: Rank) -> Loaded:
    """In a child: the model on its one device, and how its parent loads the tokenizers."""
    ranks = None
    if rank.rendezvous is not None:
        (name,) = config.device_names
        ranks = RankGroup(
            rank=rank.rank,
            size=rank.world_size,
            rendezvous=rank.rendezvous,
            device=choose_device(name),
        )
    runner = _load_runner(spec, config, sharers, ranks)
    again = [pipeline.tokenizer.load_again for pipeline in runner.models]
    return Loaded(runner if ranks is None else RankRunner(runner, ranks), again)


def _load_runner(
    spec: ModelSpec, config: EngineConfig, sharers: int = 1, ranks: RankGroup | None = None
) -> TorchModelRunner:
    (name,) = config.device_names  # of several, each has a configuration of its own
    device = choose_device(name)
    kind = RUNNERS.get(device.type, TorchModelRunner)
    return kind.load(spec, config, device, sharers=sharers, ranks=ranks)


def require_alike(runners: Sequence[ModelRunner]) -> None:
    """Raise `InvalidOption` where a text's vector would depend on which of them computes it."""
    precisions = sorted({runner.dtype_name for runner in runners})
    if len(precisions) > 1:
        raise InvalidOption(
            f"the devices run in {' and '.join(precisions)}, and a text's vector would depend "
            "on where it ran; choose a dtype that all of them have"
        )
    if len({tuple(runner.shapes) for runner in runners}) > 1:
        raise InvalidOption(
            "the model runs packed on one of the devices and padded on another; choose devices "
            "that are alike"
        )


def _device_names(config: EngineConfig) -> Sequence[str]:
    count = torch.cuda.device_count() if config.device == "cuda" else 1
    size = config.tensor_parallel_size
    if size > 1 and config.device in ("auto", "cuda") and torch.cuda.device_count():
        if torch.cuda.device_count() < size:
            raise InvalidOption(
                f"tensor_parallel_size={size} and {torch.cuda.device_count()} CUDA devices; "
                "choose no more than there are"
            )
        return [f"cuda:{index}" for index in range(size)]
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
