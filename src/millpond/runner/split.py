"""One model on several devices: a process for each, started and ended together.

The parent plans batches and every rank runs each of them, with its part of the weights and its own
keys and values of cached prefixes. Only the children know of a process group.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..errors import InvalidOption
from ..model.split.plan import REPLICAS, refuse_unsplittable
from ..model.split.ranks import RankGroup
from ..outputs import Rows
from ..scheduler.batch import Batch
from .base import BatchHandle
from .model_runner import LaunchedBatch, TorchModelRunner
from .remote.process import can_start_children
from .remote.runner import RemoteRunner
from .remote.task import ChildTask, Rank
from .replicas import visible_name

__all__ = ["RankRunner", "load_ranks", "rank_devices"]

_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
LOOPBACK = {"GLOO_SOCKET_IFNAME": _INTERFACE, "NCCL_SOCKET_IFNAME": _INTERFACE}
"""All ranks are on one machine, and no other machine is to reach them."""


def rank_devices(spec: ModelSpec, config: EngineConfig, devices: Sequence[torch.device]) -> Any:
    """The device of each rank. Raises `InvalidOption` and `UnsupportedModel`; starts nothing."""
    size = config.tensor_parallel_size
    said = f"tensor_parallel_size={size}"
    if not can_start_children() or not torch.distributed.is_available():
        raise InvalidOption(f"{said} needs a POSIX system and a torch with torch.distributed")
    if config.replicas is not None:
        raise InvalidOption(
            f"{said} and replicas={config.replicas}: a model is either split or copied; leave one "
            "of them out"
        )
    placed = _placed(devices, size, said)
    refuse_unsplittable(spec, config)
    if find_spec("accelerate") is None:
        raise InvalidOption(f'{said} needs a package more: pip install "millpond[tensor-parallel]"')
    return placed


def _placed(devices: Sequence[torch.device], size: int, said: str) -> list[torch.device]:
    kinds = {device.type for device in devices}
    if kinds == {"cpu"} and len(devices) == 1:
        cores = os.cpu_count() or 1
        if size > cores:
            raise InvalidOption(f"{said} and {cores} processors; choose no more than there are")
        return [*devices] * size
    if not kinds <= {"cpu", "cuda"} or len(kinds) > 1:
        raise InvalidOption(
            f"{said} on {', '.join(map(str, devices))}: a model is split among CUDA devices, or on "
            "a CPU"
        )
    if kinds == {"cuda"} and len(set(devices)) < len(devices):
        raise InvalidOption(f"{said}: a device is named twice")
    if len(devices) != size:
        raise InvalidOption(
            f"{said} and {len(devices)} devices ({', '.join(map(str, devices))}): name as many "
            f"as the model is split among, or {REPLICAS}"
        )
    return list(devices)


def load_ranks(
    loader: str, spec: ModelSpec, config: EngineConfig, devices: Sequence[torch.device]
) -> list[RemoteRunner]:
    """The one runner of a model that is split, once every rank has loaded its part.

    The ranks meet in a folder that only this user can read, which is gone when they have.
    """
    folder = tempfile.mkdtemp(prefix="millpond-")
    try:
        tasks = [
            _task(loader, spec, config, devices, Rank(rank=rank, world_size=len(devices)), folder)
            for rank in range(len(devices))
        ]
        return [RemoteRunner.load(tasks)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _task(
    loader: str,
    spec: ModelSpec,
    config: EngineConfig,
    devices: Sequence[torch.device],
    rank: Rank,
    folder: str,
) -> ChildTask:
    device = devices[rank.rank]
    on_cuda = device.type == "cuda"
    own = replace(
        config, device="cuda:0" if on_cuda else "cpu", tensor_parallel_size=1, replicas=None
    )
    sharers = 1 if on_cuda else len(devices)
    if own.memory_bytes is not None:  # it is said of the whole model on a CPU, of each GPU
        own = replace(own, memory_bytes=max(1, own.memory_bytes // sharers))
    return ChildTask(
        loader=loader,
        arguments=(spec, own, sharers),
        rank=replace(rank, rendezvous=f"file://{folder}/ranks"),
        environment=_environment(device, rank),
        device_name=", ".join(map(str, devices)),
    )


def _environment(device: torch.device, rank: Rank) -> Mapping[str, str]:
    """What transformers and torch ask a rank's environment for; no other process has it."""
    own = {
        "RANK": str(rank.rank),
        "LOCAL_RANK": "0",  # each sees one device, its own
        "WORLD_SIZE": str(rank.world_size),
        **LOOPBACK,
    }
    if device.type == "cuda":
        # The monitor asks the ranks' meeting place, which is gone by then; sums still time out.
        visible = visible_name(device.index or 0)
        return {**own, "CUDA_VISIBLE_DEVICES": visible, "TORCH_NCCL_ENABLE_MONITORING": "0"}
    threads = str(max(1, torch.get_num_threads() // rank.world_size))
    return {
        **own,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": "",  # or transformers would split among GPUs
    }


class RankRunner:
    """In a child: a rank's own runner, which raises only where every rank's does.

    Otherwise the process ends with an `OutOfStep`, and its parent ends the others.
    """

    def __init__(self, runner: TorchModelRunner, ranks: RankGroup) -> None:
        self._runner = runner
        self._ranks = ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def launch(self, batch: Batch) -> LaunchedBatch:
        """Start a forward pass."""
        try:
            return self._runner.launch(batch)
        except Exception as error:
            self._ranks.end_unless_all_raised(error)
            raise

    def collect(self, handle: BatchHandle) -> Rows:
        """Wait for the rows of a launched batch."""
        return self._runner.collect(handle)

    def __repr__(self) -> str:
        return f"RankRunner({self._runner!r}, {self._ranks!r})"
