"""Where replicas of a model run: which devices, how many threads, what share of the memory.

Each is a process. Inside one, Python runs one thread at a time, which is not enough to keep
two GPUs busy with a small model, nor many cores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..checkpoint.spec import ModelSpec
from ..config import EngineConfig
from ..errors import InvalidOption
from .remote.process import can_start_children
from .remote.task import ChildTask

__all__ = ["replica_devices", "replica_tasks"]

logger = logging.getLogger("millpond")


def replica_devices(
    devices: Sequence[torch.device], replicas: int | None
) -> Sequence[torch.device]:
    """The device of each replica. Raises `InvalidOption` for a number that cannot be meant."""
    if not can_start_children():
        raise InvalidOption("replicas need a POSIX system, such as Linux or macOS; leave it out")
    if replicas is None or replicas == len(devices):
        return devices
    if len(devices) > 1:
        raise InvalidOption(
            f"replicas={replicas} and {len(devices)} devices: each device has one; leave "
            "replicas out"
        )
    (device,) = devices
    if device.type != "cpu":
        raise InvalidOption(
            f"replicas={replicas} is for CPUs and this is {device}: a GPU is busy with one, and "
            'several GPUs are named by device=["cuda:0", "cuda:1"]'
        )
    return [device] * replicas


def replica_tasks(
    loader: str, spec: ModelSpec, config: EngineConfig, devices: Sequence[torch.device]
) -> list[ChildTask]:
    """What each replica's process is started for.

    Every replica of a CPU has as many threads as the others, and their bits are the same.
    """
    on_cpu = sum(device.type == "cpu" for device in devices)
    threads = max(1, torch.get_num_threads() // max(1, on_cpu))
    if on_cpu > torch.get_num_threads():
        logger.warning(
            "there are more replicas (%d) than threads (%d)", on_cpu, torch.get_num_threads()
        )
    return [
        _task(
            loader,
            replace(config, device=_name_in_child(device), replicas=None),
            spec,
            device,
            threads=threads,
            sharers=devices.count(device),
            repeats=number > 0,
        )
        for number, device in enumerate(devices)
    ]


def _task(
    loader: str,
    config: EngineConfig,
    spec: ModelSpec,
    device: torch.device,
    *,
    threads: int,
    sharers: int,
    repeats: bool,
) -> ChildTask:
    if config.memory_bytes is not None:
        config = replace(config, memory_bytes=max(1, config.memory_bytes // sharers))
    return ChildTask(
        loader=loader,
        arguments=(spec, config, sharers),
        environment=_environment(device, threads),
        device_name=str(device),
        repeats=repeats,
    )


def _name_in_child(device: torch.device) -> str:
    """It sees no other GPU than its own."""
    return "cuda:0" if device.type == "cuda" else str(device)


def _environment(device: torch.device, threads: int) -> Mapping[str, str]:
    if device.type == "cpu":
        return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if device.type == "cuda":
        return {"CUDA_VISIBLE_DEVICES": visible_name(device.index or 0)}
    return {}


def visible_name(index: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls this process's GPU of an index."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(index) if visible is None else visible.split(",")[index].strip()
